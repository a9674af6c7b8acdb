"""Builds the sample model repository: one module per model, and the drawings that one of them learns from.

Run `scripts/models`, or `python -m sample_models` with `scripts` on the Python path.
"""
