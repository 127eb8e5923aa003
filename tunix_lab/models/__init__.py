"""The decoder, its families, and their weights on disk."""
