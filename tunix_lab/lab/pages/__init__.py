"""Runs for people: a page of one, a comparison of several."""
