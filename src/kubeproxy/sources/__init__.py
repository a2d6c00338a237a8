"""How we hear the cluster: an API server, or a folder of manifests. Both tell the same things to a `Sink`."""
