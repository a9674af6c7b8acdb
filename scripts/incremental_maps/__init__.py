"""Proves incremental occlusion maps equal to full ones on large networks: `scripts/incremental`."""
