"""The points that the author of the challenge gives for mean losses."""

from finetune.challenge import POINTS, points

__all__ = ["POINTS", "points"]
