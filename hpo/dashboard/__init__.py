"""`python -m hpo.dashboard`: a study in a browser."""
