"""The objects of the Kubernetes API: the few fields that a node's Services depend on."""
