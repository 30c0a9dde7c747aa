"""`python -m hpo.dashboard`: show a study in a browser."""
