"""What is tuned and what it is measured on: the seam to `finetune`, which nothing else imports."""
