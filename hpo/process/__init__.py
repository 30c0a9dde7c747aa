"""The process and its machine: signals, devices, logging."""
