"""Where the files that belong to trials are kept."""
