"""Measures how close Vitrail comes to the limit of the machine: `python -m benchmarks`.

What the figures mean is on the page docs/performance.md.
"""
