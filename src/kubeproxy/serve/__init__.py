"""The HTTP servers of the daemon: health, metrics, and pages with its configuration and state."""
