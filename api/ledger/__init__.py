"""The privacy ledger of accounts."""
