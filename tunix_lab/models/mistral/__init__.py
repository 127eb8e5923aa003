"""Mistral 7B."""
