"""What stands between a browser and the dashboard: each module is one WSGI middleware."""
