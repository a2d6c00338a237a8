"""What the kernel holds before and after a `load` over a copy of it, compared line by line."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from kubeproxy.backends.base import KernelComparison, LoadSteps


def flat(lines: Iterable[str]) -> Iterator[str]:
    """The lines of the system's tools, each complete in itself.

    Lines of `iptables-save` get their table: "-A CHAIN RULE" below "*nat" becomes "-t nat -A CHAIN RULE", and
    the declaration of a chain becomes the command that makes it; the kernel's own chains are left out.
    """
    table = ""
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
        elif table and line.startswith(":"):
            chain, _, policy = line[1:].partition(" ")
            if policy.startswith("-"):
                yield f"-t {table} -N {chain}"
        elif table and line != "COMMIT":
            yield f"-t {table} {line}"
        elif not table:
            yield line


def compared(
    before: Callable[[], Iterable[str]], after: Callable[[], Iterable[str]], steps: LoadSteps
) -> KernelComparison:
    """The difference that a `load` makes.

    Args:
        before: the lines of what is held.
        after: the lines of what a `load` leaves there.
        steps: what it does.
    """
    if not steps:
        return KernelComparison()
    held, wanted = Counter(flat(before())), Counter(flat(after()))  # a rule may be there twice
    lacking, foreign = tuple((wanted - held).elements()), tuple((held - wanted).elements())
    reordered = () if lacking or foreign else tuple(flat(steps.lines()))
    return KernelComparison(lacking, foreign, reordered, len(steps))
