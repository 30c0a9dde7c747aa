"""What a process needs of its machine: signals, devices, a log."""
