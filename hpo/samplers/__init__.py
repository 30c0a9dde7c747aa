"""Samplers, made from a study file's words."""
