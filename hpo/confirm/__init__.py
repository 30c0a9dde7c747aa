"""`python -m hpo.confirm`: measure the best few recipes again, on unseen instances."""
