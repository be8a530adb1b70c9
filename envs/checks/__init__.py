"""What a good environment does, and whether yours does it."""
