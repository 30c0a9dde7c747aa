"""Methods and problems: the seam to `finetune`, which no other package imports."""
