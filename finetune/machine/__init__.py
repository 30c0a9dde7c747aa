"""The machine at hand: device, number format, threads."""
