"""Commands that speak to a coordinator for a person: administrators, operators, data scientists."""
