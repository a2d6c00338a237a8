"""One boot of the virtual machine, for one command.

The command sees the host's files as they were at the boot and may change them for itself; only its folder is shared. It
runs as root, in the initial network namespace of a machine without any network. The machine ends when the command does,
or when we do.
"""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm import kernel

INSIDE = "KUBEPROXY_VM"
"""Set in the environment of what runs in the machine."""

MEMORY_MEGABYTES = 3072
_CONSOLE_TAIL = 3000


def inside() -> bool:
    """Whether this process is in the machine."""
    return INSIDE in os.environ


class Machine:
    """A running machine, for a `with` block; its end ends the machine.

    Attributes:
        folder: shared with the machine, under the same path.
        process: QEMU.
    """

    def __init__(
        self, folder: Path, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Says what to run.

        Args:
            folder: an empty folder, for the machine's files and whatever the command leaves there.
            command: the command line.
            environment: variables for it.

        Raises:
            MissingError: the machine cannot be had here.
        """
        kernel.demand()
        self.folder = folder.resolve()
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "LANG": "C.UTF-8",
            INSIDE: "1",
            **(environment or {}),
        }
        settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        (self.folder / "command").write_text(
            f"{settings}cd {shlex.quote(str(kernel.ROOT))}\n{shlex.join(command)}\n"
        )

    def __enter__(self) -> Self:
        folder = self.folder
        with (folder / "qemu").open("wb") as complaints:
            # Should we be killed, the machine goes, too. Its tests take longest: the others wait for it, not it for them.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", "nice", "-n", "-10", *self._qemu()],
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    def _qemu(self) -> list[str]:
        share = "local,security_model=none,multidevs=remap"
        arguments = f"vm.folder={self.folder} vm.modules={kernel.MODULES} console=ttyS0 loglevel=4 panic=-1 mitigations=off"
        return [
            # Software emulation everywhere: a KVM inside another machine may be there and hang.
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-smp", str(min(2, os.cpu_count() or 1)), "-m", str(MEMORY_MEGABYTES)),
            *("-kernel", str(kernel.KERNEL), "-initrd", str(kernel.INITRD), "-append", arguments),
            *("-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"),
            *("-serial", f"file:{self.folder / 'console'}"),
            *("-virtfs", f"{share},path=/,mount_tag=host,readonly=on"),
            *("-virtfs", f"{share},path={self.folder},mount_tag=folder"),
        ]

    def wait(self, timeout: float) -> int | None:
        """The command's exit code once the machine is off; None if it went off without one.

        Raises:
            subprocess.TimeoutExpired: it is still running.
        """
        self.process.wait(timeout)
        try:
            return int((self.folder / "status").read_text())
        except (OSError, ValueError):
            return None

    def output(self) -> str:
        """What the command has written so far."""
        return _read(self.folder / "output")

    def complaint(self) -> str:
        """What is known of a machine that did not do its work: QEMU's words, the end of the console and of the output."""
        parts = (("QEMU", "qemu"), ("console", "console"), ("output", "output"))
        return "\n".join(
            f"--- {title}\n{text[-_CONSOLE_TAIL:].strip()}"
            for title, name in parts
            if (text := _read(self.folder / name).strip())
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
