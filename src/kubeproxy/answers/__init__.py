"""Answers questions about the Services of a node, for commands and for the daemon; writes nothing."""
