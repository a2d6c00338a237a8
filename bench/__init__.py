"""Measurements of speed and memory, compared with a named alternative in the same run."""
