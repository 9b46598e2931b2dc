"""What an attacker can prove about one run: a lower bound on epsilon beside the ledger's upper one.

Canaries, records made to be found, are put into one site's data by independent fair coins. Who
sees all that the site ever sent guesses the coins; how many guesses are right bounds epsilon from
below, with 95 % confidence. A bound of this kind finds gross errors and proves no privacy.
"""
