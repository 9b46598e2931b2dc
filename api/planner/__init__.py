"""What a plan would cost: nothing is created or reserved."""
