"""What the cluster says: the few fields of its objects that a node's Services depend on."""
