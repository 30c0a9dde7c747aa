"""Data: runes and digits."""
