"""Kubernetes' kube-proxy in Python: programs the node's kernel so that Services are reachable."""

__version__ = "0.1.0"
