"""Accounts: sign-in by e-mailed link, sessions of browsers, tokens of programs."""
