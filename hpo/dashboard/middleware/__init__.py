"""WSGI middleware between a browser and the dashboard, one in each module."""
