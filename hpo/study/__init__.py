"""Studies: their file, space, manifest, budget, controls and confirmed result."""
