"""Consents: a site sees a run's plan and its price, and says yes or no before its data are used."""
