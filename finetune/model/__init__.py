"""The course's network: its class, files, layers and a faster way to call it."""
