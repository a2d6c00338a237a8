"""Programs the plans of one IP family in the kernel, and restores them after drift.

`reconciler` decides what is synced, `planner` makes the plans, `pacer` decides when a sync may begin, and
`watchdog` detects whether another program changed the rules. `ledger` records what is in the kernel;
everything that depends on it subscribes to it.
"""
