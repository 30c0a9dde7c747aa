"""Where runes and digits come from."""
