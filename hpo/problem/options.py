"""The options by which commands name drawings."""

from finetune.data.options import add_drawings_options

__all__ = ["add_drawings_options"]
