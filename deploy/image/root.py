"""The root file system of an image: Debian packages unpacked, what their scripts would have done, and the program with its libraries.

There is no package manager in it. /var/lib/dpkg/status.d names the packages, which is where scanners look in
such images.
"""

import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from deploy.image.packages import Package, run, unpack
from deploy.image.sbom import Wheel

PYTHON = "3.13"
LIBRARY = Path(f"usr/lib/python{PYTHON}")
SITE = Path("usr/local/lib/python") / PYTHON
"""Where the program and its libraries are; the entry point adds it to the path of the interpreter."""

COMMAND = Path("usr/local/bin/kube-proxy")
_LAUNCHER = f"""#!/usr/bin/python{PYTHON} -sP
import sys

sys.path.insert(0, "/{SITE}")
from kubeproxy.cli import main

sys.exit(main())
"""

_ALTERNATIVES = ("", "-save", "-restore")
_USELESS = (
    *(
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
        "usr/share/lintian",
        "usr/share/bug",
    ),
    *(
        "usr/share/bash-completion",
        "usr/share/perl5",
        "usr/share/menu",
        "usr/share/common-licenses",
        "usr/share/zsh",
    ),
    *(
        "usr/lib/*/gconv",
        "usr/lib/*/perl*",
        "usr/lib/*/audit",
        "usr/lib/systemd",
        "usr/lib/init",
        "etc/init.d",
    ),
    *("usr/share/python3", "usr/lib/python3", "etc/default", "etc/cron*", "etc/dpkg", "usr/share/gcc"),
    *(
        f"{LIBRARY}/{name}"
        for name in ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo")
    ),
    *(f"{LIBRARY}/{name}" for name in ("_pyrepl", "curses", "dbm", "sqlite3", "venv", "wsgiref", "xmlrpc")),
)
_USERS = (
    "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
)
_GROUPS = "root:x:0:\nnogroup:x:65534:\n"


def make(root: Path, packages: Sequence[Package], wheels: Sequence[Path], native: Path | None = None) -> None:
    """Makes the file system.

    Args:
        root: the folder to make it in; there is nothing yet.
        packages: the Debian packages.
        wheels: the program and its libraries, as files of wheels.
        native: the same made for this machine's architecture, to take the byte code of; None if this is that.
    """
    status = root / "var/lib/dpkg/status.d"
    root.mkdir(parents=True)
    for package in packages:
        lines = list(unpack(package, root))
        status.mkdir(parents=True, exist_ok=True)
        (status / package.name).write_text("\n".join(lines) + "\n")
    _trim(root)
    _configure(root)
    site = root / SITE
    site.mkdir(parents=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    command = root / COMMAND
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(_LAUNCHER)
    command.chmod(0o755)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o7022 | (0o755 if path.is_dir() else 0o644))
    (root / "tmp").chmod(0o1777)
    _compile(root, native)


def describe(wheel: Path) -> Wheel:
    """Name, version and hash of a wheel."""
    name, version, *_ = wheel.name.split("-")
    return Wheel(name.replace("_", "-"), version, hashlib.sha256(wheel.read_bytes()).hexdigest())


def _trim(root: Path) -> None:
    for pattern in _USELESS:
        for path in root.glob(pattern):
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            else:
                shutil.rmtree(path)
    for path in (*root.glob(f"{LIBRARY}/config-*"), *root.rglob("__pycache__")):
        shutil.rmtree(path, ignore_errors=True)


def _configure(root: Path) -> None:
    """What scripts of the packages do: accounts, links to the chosen programs, the file of all certificates."""
    (root / "etc/passwd").write_text(_USERS)
    (root / "etc/group").write_text(_GROUPS)
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    for base in ("iptables", "ip6tables"):
        for suffix in _ALTERNATIVES:
            (root / "usr/sbin" / f"{base}{suffix}").symlink_to(f"{base}-nft{suffix}")
    if not (shell := root / "usr/bin/sh").exists():
        shell.symlink_to("dash")
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(certificate.read_text() for certificate in certificates))
    shutil.rmtree(root / "usr/share/ca-certificates")
    for name in (
        "root",
        "tmp",
        "run",
        "proc",
        "sys",
        "dev",
        "etc/services.d",
        "lib/modules",
        "var/lib/kube-proxy",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)


def _compile(root: Path, native: Path | None) -> None:
    """Makes byte code that is used without a look at its source, so that times of files do not matter.

    Byte code is the same for every architecture: a foreign one takes what was made for the same source on
    this one.
    """
    if native is None:
        options = ("-q", "--invalidation-mode", "unchecked-hash")
        run(
            "chroot",
            root,
            f"/usr/bin/python{PYTHON}",
            "-m",
            "compileall",
            *options,
            f"/{LIBRARY}",
            f"/{SITE}",
        )
        return
    for source in (*(root / LIBRARY).rglob("*.py"), *(root / SITE).rglob("*.py")):
        if source.is_symlink():
            continue
        same = native / source.relative_to(root)
        cached = same.parent / "__pycache__" / f"{same.stem}.cpython-{PYTHON.replace('.', '')}.pyc"
        if cached.exists() and same.read_bytes() == source.read_bytes():
            target = source.parent / "__pycache__" / cached.name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(cached, target)
