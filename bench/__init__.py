"""Measurements: speed and memory, as ratios to something named in the same run."""
