"""Tasks: make or read rows, and score answers."""
