"""The kernel's netlink, packed by hand: a library of its own that knows no Kubernetes."""
