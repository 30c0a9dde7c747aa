"""Scores of an adapted network: its loss and its cost."""
