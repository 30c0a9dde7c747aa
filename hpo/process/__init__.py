"""What a process is to its machine: signals, devices, its log."""
