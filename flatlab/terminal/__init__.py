"""What commands and the Python interface say while they work."""
