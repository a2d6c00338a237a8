"""Kubernetes' kube-proxy in Python: Services made real in the node's kernel."""

__version__ = "0.1.0"
