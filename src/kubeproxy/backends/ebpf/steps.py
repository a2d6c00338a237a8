"""What a `load` would do to the table and to the maps, as a value that can be compared and printed."""

from collections.abc import Iterator

from msgspec import Struct

from kubeproxy.backends.base import LoadSteps
from kubeproxy.backends.ebpf.held import HeldFronts


class FrontSteps(Struct, frozen=True, gc=False):
    """What is to be done to the maps.

    Attributes:
        before: what they hold.
        after: what they should hold.
    """

    before: HeldFronts
    after: HeldFronts

    def __len__(self) -> int:
        return len(self.lines())

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        return list(self._lines())

    def lacking(self) -> list[str]:
        """What they should hold and do not."""
        held = set(self.before.lines())
        return [line for line in self.after.lines() if line not in held]

    def foreign(self) -> list[str]:
        """What they hold and should not."""
        wanted = set(self.after.lines())
        return [line for line in self.before.lines() if line not in wanted]

    def _lines(self) -> Iterator[str]:
        for name in self.before.detached:
            yield f"attach program {name}"
        yield from (f"set {line}" for line in self.lacking())
        kept = {(front.address, front.protocol, front.port) for front in self.after.fronts}
        for front in self.before.fronts:
            if (front.address, front.protocol, front.port) not in kept:
                yield f"delete {front}"
        hosts = dict(self.after.hosts)
        yield from (f"delete node ports at {host}" for host, _ in self.before.hosts if host not in hosts)


class ConnectSteps(Struct, frozen=True, gc=False):
    """What is to be done to the table, then to the maps.

    Attributes:
        rules: steps of the table.
        front: steps of the maps; None where there are none.
    """

    rules: LoadSteps
    front: FrontSteps | None

    def __len__(self) -> int:
        return len(self.rules) + (len(self.front) if self.front is not None else 0)

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        return [*self.rules.lines(), *(self.front.lines() if self.front is not None else ())]
