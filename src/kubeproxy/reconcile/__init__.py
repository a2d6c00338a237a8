"""Brings the kernel to the plans of one IP family, and keeps it there.

`reconciler` decides what is synced, `pacer` when a sync may begin.
"""
