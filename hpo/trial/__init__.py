"""What a trial stores, how it ends, and how trials rank."""
