"""Loads and unloads a model again and again, and measures what is left of it: `scripts/soak`."""
