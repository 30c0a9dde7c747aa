"""A study's database: how it is opened, read and written."""
