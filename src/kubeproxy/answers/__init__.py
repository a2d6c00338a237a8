"""Answers to questions about the Services of a node, for commands and for the daemon that is asked: they write nothing."""
