"""Files of Debian's packages, for tests: a package is downloaded from this system's package sources and unpacked, not installed."""

import subprocess
from pathlib import Path

PROGRAMS = ("apt-get", "dpkg-deb")


class MissingError(Exception):
    """Something that tests need is not available here; the message has the reason and the remedy."""


def unpack(package: str, folder: Path) -> Path:
    """Downloads a package and unpacks its files below `folder`, which must be empty; returns the root of its files.

    Raises:
        MissingError: the package cannot be downloaded.
    """
    download = ("apt-get", "download", "-qq", package)
    try:
        run(*download, cwd=folder)
    except MissingError:  # the lists of packages may be old, or there are none yet
        run("apt-get", "update", "-qq")
        run(*download, cwd=folder)
    (file,) = folder.glob("*.deb")
    root = folder / "root"
    run("dpkg-deb", "-x", str(file), str(root))
    return root


def run(*command: str, cwd: Path | None = None) -> str:
    """What a program prints.

    Raises:
        MissingError: it failed; with its complaint.
    """
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
