"""From trials to numbers: status, importances, references, groups."""
