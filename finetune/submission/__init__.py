"""The one file that is handed in: the method's modules joined, and the proof that they agree."""
