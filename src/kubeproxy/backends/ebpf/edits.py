"""One endpoint of a block comes, goes, or takes another one's place: a single store, without a new block.

A slot of IPv4 is one word, so a program sees the old endpoint or the new one. The order of slots has no
meaning. So the last endpoint takes the place of one that goes, before the word counts one less: a program
that has read the old word finds the last endpoint twice, and the other one not any more. One that comes is
stored behind the last, before the word counts one more.
"""

from itertools import compress, count
from operator import ne

from kubeproxy.backends.ebpf import layout
from kubeproxy.backends.ebpf.blocks import rounded
from kubeproxy.backends.ebpf.layout import BASE, COUNT
from kubeproxy.backends.ebpf.tables import FrontMaps
from kubeproxy.model.select import Endpoint

Ends = tuple[Endpoint, ...]


def edit(maps: FrontMaps, word: int, before: Ends, after: Ends) -> tuple[int, int] | None:
    """The slot, and its new value, with which a block has other endpoints; None if more must change.

    Args:
        maps: the maps.
        word: the word that names the block.
        before: the endpoints of its block.
        after: those it must have.
    """
    base, number = word & BASE, (word & COUNT) >> 32
    if number != len(before) or not after:
        return None
    if len(after) != number and rounded(len(after)) != rounded(number):
        return None
    found = changed(before, after)
    if found is None:
        return None
    gone, come = found
    value = maps.cells[base + number - 1] if come is None else layout.cell(after[come])
    if gone is None:
        return base + number, value
    wanted = layout.cell(before[gone])
    at = base + gone
    if maps.cells[at] != wanted:  # earlier changes have left another order
        try:
            at = base + maps.cells[base : base + number].tolist().index(wanted)
        except ValueError:  # not written by us
            return None
    return at, value


def changed(before: Ends, after: Ends) -> tuple[int | None, int | None] | None:
    """Where the endpoint was that is gone, and where the one is that came; None if others did, too."""
    more = len(after) - len(before)
    first = next(compress(count(), map(ne, before, after)), -1)
    if first < 0:  # one begins with the other
        first = min(len(before), len(after))
    if more == 1:
        return (None, first) if before[first:] == after[first + 1 :] else None
    if more == -1:
        return (first, None) if before[first + 1 :] == after[first:] else None
    if more or first == len(before):
        return None
    if before[first + 1 :] == after[first + 1 :]:
        return first, first
    last = len(before) - 1
    while before[last] == after[last]:
        last -= 1
    if before[first + 1 : last + 1] == after[first:last]:
        return first, last
    if before[first:last] == after[first + 1 : last + 1]:
        return last, first
    return None
