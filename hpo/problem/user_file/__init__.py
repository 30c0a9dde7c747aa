"""A user's own file with a `finetune_model`: its parameters, its process, its text."""
