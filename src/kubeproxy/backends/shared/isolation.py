"""Sends parts together, and separately if they are refused, until the refused ones are identified."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from kubeproxy.backends.base import SyncError

HOPELESS: Final = 16
"""So many refusals without one success are not the Services' fault."""

Part = TypeVar("Part")
Refusal = TypeVar("Refusal", bound=Exception)


def isolate(
    parts: Sequence[Part],
    send: Callable[[Sequence[Part]], None],
    refusal: type[Refusal],
    suspect: Callable[[Sequence[Part], Refusal], int] | None = None,
) -> Iterator[tuple[Part, Refusal]]:
    """Sends parts in order, as many at a time as are accepted; yields each that is refused by itself.

    Args:
        parts: the parts.
        send: sends some of them, all or none.
        refusal: what it raises where they are refused.
        suspect: which of several parts a refusal points at; without it they are halved.

    Raises:
        SyncError: all are refused, so no single part is the cause.
    """
    todo = [parts]
    accepted = refused = 0
    while todo:
        piece = todo.pop()
        try:
            send(piece)
            accepted += 1
        except refusal as e:
            if len(piece) > 1:
                if suspect is None:
                    cuts = [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
                else:
                    at = suspect(piece, e)
                    cuts = [piece[:at], piece[at : at + 1], piece[at + 1 :]]
                todo += [cut for cut in reversed(cuts) if cut]
                continue
            yield piece[0], e
            refused += 1
            if not accepted and refused >= HOPELESS:
                raise SyncError(f"every Service is refused; the last words: {e}") from e
