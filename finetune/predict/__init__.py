"""What an adapted network answers."""
