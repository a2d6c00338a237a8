"""Answers about the Services of a node without a daemon; reads sources, plans and the kernel only."""
