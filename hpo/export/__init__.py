"""`python -m hpo.export`: the best recipe as the one file that is handed in."""
