"""The points of the challenge for mean losses."""

from finetune.challenge import POINTS, points

__all__ = ["POINTS", "points"]
