"""The service: workers that share one study of recipes."""
