"""What a `load` would do in HNS, as values."""

from msgspec import Struct


class HnsStep(Struct, frozen=True, gc=False):
    """One call that changes something.

    Attributes:
        verb: create, modify or delete.
        what: the lines of the object, as `describe` has them.
    """

    verb: str
    what: tuple[str, ...]


class HnsSteps(Struct, frozen=True):
    """The calls in their order; see `backends.base.LoadSteps`."""

    steps: tuple[HnsStep, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        return [f"{step.verb}: {line}" for step in self.steps for line in step.what]
