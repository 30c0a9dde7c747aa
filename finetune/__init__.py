"""Adapting a pretrained rectified-flow network to a new class from ten drawings."""
