"""Fair use of synthesis: quotas of a token, and how many answers are made at once."""
