"""The story of a study as one page: what each part says, and how it is drawn."""
