"""The semantics of kube-proxy: which plans this node should have.

Pure functions and values, without I/O and clock.
"""
