"""The story of a study: sections of a document, and renderers of it."""
