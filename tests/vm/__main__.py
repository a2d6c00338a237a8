"""Runs a command in the virtual machine, with its output as it comes; ends with its exit code."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.packages import MissingError
from tests.vm.kernel import FOLDER
from tests.vm.machine import Machine

_POLL_SECONDS = 0.2


def run(command: Sequence[str]) -> int:
    """Runs a command, showing its output as it comes; returns its exit code.

    Raises:
        MissingError: the virtual machine cannot be had here.
    """
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=FOLDER, prefix="command-") as folder,
        Machine(Path(folder), command) as machine,
    ):
        shown = 0
        while True:
            try:
                code = machine.wait(_POLL_SECONDS)
                ended = True
            except subprocess.TimeoutExpired:
                ended = False
            text = machine.output()
            print(text[shown:], end="", flush=True)
            shown = len(text)
            if ended:
                if code is None:
                    sys.exit(f"the virtual machine went off:\n{machine.complaint()}")
                return code


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except MissingError as e:
        sys.exit(f"tests/vm: {e}")
