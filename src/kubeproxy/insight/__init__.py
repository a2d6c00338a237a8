"""Answers about the Services of a node, without a daemon: they read sources, plans and the kernel, and write nothing."""
