"""A connection of a relay that carries nothing."""


class FakeConnection:
    """See `Carried`.

    Attributes:
        lost: its target was removed.
    """

    def __init__(self) -> None:
        self.lost = False

    def lost_target(self) -> None:
        self.lost = True
