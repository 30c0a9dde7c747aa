"""A reference machine's time: how many steps a call makes, wherever it runs."""
