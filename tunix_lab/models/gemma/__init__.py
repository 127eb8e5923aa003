"""Gemma 1."""
