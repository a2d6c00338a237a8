"""Debian packages for an image: which ones apt would install, fetched with their hashes checked, and unpacked without being installed.

Nothing of a package runs: its files are unpacked, so that any machine can build for any architecture. What a
package's scripts would have done is done by `root`. apt works on a state of its own in a folder, with the
host's mirror and Debian's keys.
"""

import hashlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from msgspec import Struct

SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
WANTED = (
    "base-files",
    "ca-certificates",
    "conntrack",
    "dash",
    "ipset",
    "iproute2",
    "iptables",
    "ipvsadm",
    "kmod",
    "libpython3-stdlib",
    "nftables",
    "python3-minimal",
)
"""What the image needs: `sh`, Python, and the programs of each mode; with apt's closure of dependencies."""

UNWANTED = frozenset(
    {
        *("debconf", "dpkg", "init-system-helpers", "perl-base", "tar"),  # needed to install packages
        *("openssl", "openssl-provider-legacy", "gcc-14-base", "libgcc-s1-doc"),
        *("readline-common", "libreadline8t64", "libsqlite3-0", "libdb5.3t64", "tzdata", "media-types"),
        *("libpam0g", "libpam-modules", "libpam-modules-bin", "libpam-runtime", "passwd", "mawk"),
    }
)
"""What apt adds to install and configure packages, and libraries of Python modules that the program does not import."""

_URI = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) \d+ SHA256:(?P<sha256>[0-9a-f]{64})$", re.MULTILINE)


class BuildError(Exception):
    """The image cannot be built; the message says why."""


class Package(Struct, frozen=True):
    """A Debian package: its name, version and architecture, the SHA-256 of its file, and where that file is."""

    name: str
    version: str
    architecture: str
    sha256: str
    path: Path


def run(*command: str | Path, cwd: Path | None = None, data: bytes | None = None) -> str:
    """What a program prints.

    Raises:
        BuildError: it is missing or failed; with what it said.
    """
    try:
        done = subprocess.run(command, cwd=cwd, input=data, capture_output=True, check=False)
    except OSError as e:
        raise BuildError(f"{command[0]}: {e.strerror}") from e
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise BuildError(f"{' '.join(map(str, command))}: {said}")
    return done.stdout.decode()


class Archive:
    """Debian's archive for one architecture, with apt's lists in a folder."""

    def __init__(self, folder: Path, mirror: str, architecture: str) -> None:
        """Nothing is fetched before `update`.

        Args:
            folder: where apt keeps its state and the packages; made if it is missing.
            mirror: the address of a mirror.
            architecture: Debian's name of the architecture, "amd64" or "arm64".
        """
        self._packages = folder / "packages"
        state = folder / f"apt-{architecture}"
        for part in ("lists/partial", "archives/partial"):
            (state / part).mkdir(parents=True, exist_ok=True)
        self._packages.mkdir(exist_ok=True)
        (state / "status").touch()
        (state / "sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {mirror} {s} main\n" for s in (SUITE, f"{SUITE}-updates"))
            + f"deb [signed-by={KEYRING}] {mirror.rstrip('/')}-security {SUITE}-security main\n"
        )
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures::": architecture,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Dir::State": state,
            "Dir::State::status": state / "status",
            "Dir::Cache": state,
            "Dir::Etc::sourcelist": state / "sources.list",
            "Dir::Etc::sourceparts": "/nonexistent",
            "Dir::Etc::preferences": "/nonexistent",
            "Dir::Etc::preferencesparts": "/nonexistent",
        }
        self._options = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetches the lists of packages.

        Raises:
            BuildError: the mirror cannot be reached or its signatures are wrong.
        """
        run("apt-get", *self._options, "-qq", "update")

    def fetch(self) -> list[Package]:
        """Fetches the wanted packages and what they depend on, in the order of their names.

        Raises:
            BuildError: a package is missing or its hash is wrong.
        """
        asked = ("install", "--print-uris", "-qq", "-y", "--no-install-recommends", *WANTED)
        found = [self._fetch(m["uri"], m["sha256"]) for m in _URI.finditer(self._uris(asked))]
        if missing := set(WANTED) - {package.name for package in found if package}:
            raise BuildError(f"apt offers no {', '.join(sorted(missing))}")
        return sorted((p for p in found if p), key=lambda p: p.name)

    def _uris(self, asked: Sequence[str]) -> str:
        # apt prints SHA256 only where it is told not to use a weaker one.
        return run("apt-get", *self._options, "-o", "Acquire::ForceHash=SHA256", *asked)

    def _fetch(self, uri: str, sha256: str) -> Package | None:
        file = unquote(uri.rpartition("/")[2])
        name, version, architecture = file.removesuffix(".deb").split("_")
        if name in UNWANTED:
            return None
        path = self._packages / file
        if not path.exists() or _sha256(path) != sha256:
            helper = "/usr/lib/apt/apt-helper"
            run(helper, *self._options, "download-file", uri, path, f"SHA256:{sha256}")
        return Package(name, version, architecture, sha256, path)


def unpack(package: Package, root: Path) -> Iterator[str]:
    """Unpacks a package's files into a folder; yields the lines of its control file."""
    run("dpkg-deb", "--extract", package.path, root)
    yield from run("dpkg-deb", "--field", package.path).splitlines()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
