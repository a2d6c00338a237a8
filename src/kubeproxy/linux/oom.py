"""How much the kernel spares this process when memory runs out: /proc/self/oom_score_adj (proc(5))."""

from pathlib import Path

FILE = Path("/proc/self/oom_score_adj")


def adjust(score: int) -> None:
    """Sets the score of this process and of the programs it starts, unless it is that already.

    Args:
        score: -1000, never end it, to 1000, end it first.

    Raises:
        OSError: a score below the one given to us needs CAP_SYS_RESOURCE.
    """
    if int(FILE.read_text()) != score:
        FILE.write_text(str(score))
