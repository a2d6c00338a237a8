"""The sources of objects: an API server, or a folder of manifests. Both make the same calls of a `Sink`."""
