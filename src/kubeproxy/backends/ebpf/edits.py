"""One endpoint of a block comes, goes, or takes another one's place: a single store, without a new block.

A slot of IPv4 is one word, so a program sees the old endpoint or the new one. The order of slots has no
meaning. So the last endpoint takes the place of one that goes, before the word counts one less: a program
that has read the old word finds the last endpoint twice, and the other one not any more. One that comes is
stored behind the last, before the word counts one more.
"""

from kubeproxy.backends.ebpf import layout
from kubeproxy.backends.ebpf.blocks import rounded
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
    base, count, _ = layout.parts(word)
    new = len(after)
    if count != len(before) or not new or (new != count and rounded(new) != rounded(count)):
        return None
    found = changed(before, after)
    if found is None:
        return None
    gone, come = found
    if gone is None:
        assert come is not None
        return base + count, layout.cell(come)
    values = maps.cells[base : base + count].tolist()
    try:
        at = values.index(layout.cell(gone))
    except ValueError:  # not written by us
        return None
    return base + at, values[-1] if come is None else layout.cell(come)


def changed(before: Ends, after: Ends) -> tuple[Endpoint | None, Endpoint | None] | None:
    """The endpoint that is gone and the one that came; None if others did, too."""
    first = 0
    for old, new in zip(before, after, strict=False):
        if old != new:
            break
        first += 1
    more = len(after) - len(before)
    if more == 1:
        return (None, after[first]) if before[first:] == after[first + 1 :] else None
    if more == -1:
        return (before[first], None) if before[first + 1 :] == after[first:] else None
    if more or first == len(before):
        return None
    if before[first + 1 :] == after[first + 1 :]:
        return before[first], after[first]
    last = len(before) - 1
    while before[last] == after[last]:
        last -= 1
    if before[first + 1 : last + 1] == after[first:last]:
        return before[first], after[last]
    if before[first:last] == after[first + 1 : last + 1]:
        return before[last], after[first]
    return None
