"""`python -m hpo.confirm`: the best few recipes again, on unseen instances."""
