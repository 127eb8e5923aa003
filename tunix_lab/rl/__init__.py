"""Reinforcement learning from rewards."""
