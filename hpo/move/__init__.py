"""`python -m hpo.move`: a study to another database."""
