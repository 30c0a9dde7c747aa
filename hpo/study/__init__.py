"""What a study is: its file, space, manifest, budget, and its confirmed result."""
