"""The virtual machine's kernel and first file system, made under .vm: `python -m tests.vm.kernel`.

The kernel is the one Debian would install on this machine, taken out of its package, not installed. The first file
system holds a static busybox, the modules that are needed to mount the host's files, and `init`.
"""

import gzip
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.packages import MissingError, run, unpack

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".vm"
KERNEL = FOLDER / "vmlinuz"
INITRD = FOLDER / "initrd"
MODULES = FOLDER / "modules"
PROGRAMS = ("qemu-system-x86_64", "busybox", "cpio", "depmod", "modprobe", "apt-get", "dpkg-deb")

_META = "linux-image-amd64"
_NEEDED = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_MOUNT_POINTS = ("bin", "proc", "sys", "dev", "memory", "host", "root")


def demand() -> None:
    """Fails where the virtual machine cannot be started.

    Raises:
        MissingError: a program or what `make .vm` makes is missing.
    """
    missing = [program for program in PROGRAMS[:1] if shutil.which(program) is None]
    missing += [str(path) for path in (KERNEL, INITRD, MODULES) if not path.exists()]
    if missing:
        raise MissingError(f"the virtual machine's {', '.join(missing)} is missing: run `make vm`")


def build() -> None:
    """Makes everything; what is there and complete is kept.

    Raises:
        MissingError: a program is missing or the kernel cannot be fetched.
    """
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        raise MissingError(f"to build the virtual machine these programs are needed: {', '.join(missing)}")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="build-") as folder:
        unpacked = unpack(_package(), Path(folder))
        modules = _modules(unpacked)
        (release,) = [path.name for path in modules.iterdir()]
        run("depmod", "-b", str(unpacked), release)
        shutil.rmtree(MODULES, ignore_errors=True)
        modules.rename(MODULES)
        shutil.copy(unpacked / f"boot/vmlinuz-{release}", KERNEL)
        _initrd(Path(folder), release)
    print(f"{FOLDER.name}: Linux {release}")


def _modules(root: Path) -> Path:
    """The folder of the modules, which is reachable as lib/modules and as usr/lib/modules afterwards.

    Debian's packages have them in lib/modules up to Debian 12 and in usr/lib/modules from Debian 13 on; so do depmod and modprobe.
    """
    old, new = root / "lib/modules", root / "usr/lib/modules"
    found, other = (old, new) if old.exists() else (new, old)
    other.parent.mkdir(parents=True, exist_ok=True)
    other.symlink_to(found)
    return found


def _package() -> str:
    """The name of the kernel's package."""
    found = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", _META))
    if found is None:
        run("apt-get", "update", "-qq")
        found = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", _META))
    if found is None:
        raise MissingError(
            f"this system's package sources have no {_META}: the virtual machine needs Debian's kernel"
        )
    return found[1]


def _initrd(folder: Path, release: str) -> None:
    """Packs the first file system."""
    root = folder / "initrd"
    for name in _MOUNT_POINTS:
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copy(Path(__file__).with_name("init"), root / "init")
    (root / "init").chmod(0o755)
    order: dict[str, None] = {}
    tree = folder / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "usr/lib/modules").symlink_to(MODULES)
    _modules(tree)
    for module in _NEEDED:
        said = run("modprobe", "-d", str(tree), "-S", release, "--show-depends", module)
        order.update(dict.fromkeys(re.findall(r"^insmod (\S+)", said, re.MULTILINE)))
    for path in order:
        shutil.copy(path, root)
    (root / "order").write_text("".join(f"/{Path(path).name}\n" for path in order))
    names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"],
        cwd=root,
        input=names.encode(),
        capture_output=True,
        check=True,
    ).stdout
    INITRD.write_bytes(gzip.compress(packed, 1))


if __name__ == "__main__":
    try:
        build()
    except MissingError as e:
        sys.exit(f"tests/vm: {e}")
