"""Whether source ranges contain the node's address. For the modes that compile ranges one by one."""

from kubeproxy.api.addresses import contains


class Admission:
    """Answers for one address, and keeps the last answer: all ports of a Service have the same ranges."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ranges: tuple[str, ...] = ()
        self._answer = False

    def __call__(self, ranges: tuple[str, ...]) -> bool:
        """Whether one of some canonical ranges contains the address."""
        if ranges != self._ranges:
            self._ranges = ranges
            self._answer = any(contains(cidr, self._address) for cidr in ranges)
        return self._answer
