"""Brings the kernel to the plans of one IP family, and keeps it there.

`reconciler` decides what is synced, `planner` makes the plans, `pacer` decides when a sync may begin, and `watchdog` detects
whether another program changed the rules. `ledger` records what is in the kernel; all that depends on that subscribes to it.
"""
