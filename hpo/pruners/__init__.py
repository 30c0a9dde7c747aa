"""Pruners: racing and its statistics."""
