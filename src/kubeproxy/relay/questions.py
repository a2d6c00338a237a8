"""Questions of the daemon to the process, and which of them must still be sent to it."""

import itertools
from collections.abc import Callable

from kubeproxy.relay.table import Take
from kubeproxy.relay.traffic import Traffic
from kubeproxy.relay.values import CarriedFlow, ListedFlows, Message, Tallied


class Questions:
    """Questions that have no answer yet, and answers. A new process is asked again. Not thread-safe.

    Attributes:
        traffic: the answers to questions for tallies.
    """

    def __init__(self) -> None:
        self.traffic = Traffic()
        self._flows: dict[int, list[CarriedFlow]] = {}
        self._numbers = itertools.count(1)
        self._open: dict[int, Message] = {}
        self._unsent: dict[int, None] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._open

    def ask(self, question: Callable[[int], Message]) -> int:
        """Asks a question, see `send`.

        Args:
            question: makes its message.

        Returns:
            Its number.
        """
        number = next(self._numbers)
        self._open[number] = question(number)
        self._unsent[number] = None
        return number

    def take(self, part: Tallied | ListedFlows) -> None:
        """A part of an answer came. It may be late, when it is not waited for any more."""
        if isinstance(part, Tallied):
            self.traffic.add(part.tallies)
        elif part.number in self._open:
            self._flows.setdefault(part.number, []).extend(part.flows)
        if not part.more:
            self._open.pop(part.number, None)

    def end(self, number: int) -> list[CarriedFlow]:
        """No answer is expected any more; returns the flows that came."""
        self._open.pop(number, None)
        self._unsent.pop(number, None)
        return self._flows.pop(number, [])

    def restart(self) -> None:
        """The process has ended; another one follows."""
        self.traffic.lost()
        self._unsent = dict.fromkeys(self._open)
        for number in self._open:
            self._flows.pop(number, None)

    def send(self, take: Take) -> bool:
        """Sends questions to the process. Returns whether all have been sent."""
        for number in list(self._unsent):
            if not take(self._open[number], None):
                return False
            del self._unsent[number]
        return True
