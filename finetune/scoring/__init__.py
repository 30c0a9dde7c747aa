"""What an adapted network is worth, and costs."""
