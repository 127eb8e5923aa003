"""Models for others, and the proof that they are the same models."""
