"""`python -m hpo.move`: copy a study to another database."""
