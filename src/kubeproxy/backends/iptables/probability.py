"""Probabilities of rules that choose an endpoint, as iptables prints them.

So a rule that is written is equal, to the character, to what `iptables-save` prints of it.
"""

_probabilities: dict[int, str] = {}


def probability(whole: int, weight: int = 1) -> str:
    """The part of a weight in the whole, as iptables prints it.

    The reference writes ten decimals, of which the kernel keeps 31 bits.
    """
    if weight > 1:
        return _printed(weight / whole)
    text = _probabilities.get(whole)
    if text is None:
        text = _probabilities[whole] = _printed(1 / whole)
    return text


def _printed(part: float) -> str:
    return f"{round(float(f'{part:.10f}') * (1 << 31)) / (1 << 31):.11f}"
