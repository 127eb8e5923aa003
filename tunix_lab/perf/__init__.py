"""Measuring where time and memory go."""
