"""What this node should do: pure functions and values, without I/O or clock. All of kube-proxy's semantics live here."""
