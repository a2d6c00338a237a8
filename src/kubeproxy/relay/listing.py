"""The clients of a front that have a target now."""

from collections.abc import Collection, Iterator
from itertools import islice

from kubeproxy.relay.connection import Connection
from kubeproxy.relay.loop import Handler
from kubeproxy.relay.tcp import Dialing
from kubeproxy.relay.udp import UDPFlow
from kubeproxy.relay.values import AskFlows, CarriedFlow, Target


def flows(handlers: Collection[Handler], question: AskFlows) -> tuple[CarriedFlow, ...]:
    """The answer to a question.

    This looks at all connections, which takes the process about a millisecond for each thousand.

    Args:
        handlers: those of the loop, which has the connections.
        question: the question.
    """
    return tuple(islice(_flows(handlers, question), question.most))


def _flows(handlers: Collection[Handler], question: AskFlows) -> Iterator[CarriedFlow]:
    clients = frozenset(question.clients)
    for handler in handlers:
        if not isinstance(handler, Connection | Dialing | UDPFlow) or handler.group != question.group:
            continue
        try:
            client, front = handler.client(), handler.front()
        except OSError:  # it is being reset
            continue
        if _plain(front) == question.front and (not clients or _plain(client)[0] in clients):
            yield CarriedFlow(_plain(client), handler.target, not isinstance(handler, Dialing))


def _plain(place: Target) -> Target:
    """A place without the interface of a link-local address."""
    return place[0].partition("%")[0], place[1]
