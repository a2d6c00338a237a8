"""The OOM score adjustment of this process: /proc/self/oom_score_adj (proc(5))."""

from pathlib import Path

FILE = Path("/proc/self/oom_score_adj")


def adjust(score: int) -> None:
    """Sets the score of this process, which programs inherit that it starts.

    The current value is not written again.

    Args:
        score: from -1000, the kernel never kills the process, to 1000, the kernel kills it first.

    Raises:
        OSError: a score below the one at the start of the process needs CAP_SYS_RESOURCE.
    """
    if int(FILE.read_text()) != score:
        FILE.write_text(str(score))
