"""The problem that is tuned: instances, and how a recipe is evaluated on one."""
