"""`python -m hpo.worker`: runs trials of a study."""
