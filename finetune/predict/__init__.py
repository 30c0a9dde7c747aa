"""Prediction with an adapted network."""
