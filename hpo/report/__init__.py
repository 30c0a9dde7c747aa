"""The report of a study: sections of a document, and its renderers."""
