"""Checks of this node and of its Services: what is probably wrong, how that was seen, and what to do.

`gather` reads everything once, as a value (`facts`); nothing is changed. Each check is a value (`check`)
whose function looks at these facts only. What could not be read is a fact, too: a check that needs it is
reported as skipped, with the reason, and never as passed. `examine` runs the checks.
"""
