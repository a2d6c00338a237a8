"""Kernel settings under /proc/sys."""

from pathlib import Path

ROOT = Path("/proc/sys")


def read(name: str) -> str:
    """The value of a setting, e.g. of "net/ipv4/ip_forward".

    Raises:
        OSError: there is none, or it cannot be read.
    """
    return (ROOT / name).read_text().strip()


def names(folder: str) -> list[str]:
    """The names in a folder of settings, e.g. in "net/ipv4/conf".

    Raises:
        OSError: there is no such folder.
    """
    return [path.name for path in (ROOT / folder).iterdir()]


def ensure(name: str, value: int) -> bool:
    """Sets a setting if it has another value; returns whether it was written.

    A correct value is not written again, so that a read-only /proc/sys causes no error in this case.

    Raises:
        OSError: there is no such setting, or it cannot be written.
    """
    if read(name) == str(value):
        return False
    (ROOT / name).write_text(str(value))
    return True
