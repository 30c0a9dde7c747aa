"""Numbers computed from trials: status, importances, references, groups. No drawing."""
