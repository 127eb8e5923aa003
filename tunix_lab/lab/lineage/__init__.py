"""What made a thing, and what was made of it."""
