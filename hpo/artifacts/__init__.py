"""Storage of the files that belong to trials."""
