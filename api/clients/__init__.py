"""Enrolled clients: who takes part, with which data, under which budget."""
