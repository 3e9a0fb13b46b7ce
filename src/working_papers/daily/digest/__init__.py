"""The digest: who gets it, what is in it, and how it is sent exactly once."""
