"""The client in Wine, as the functions of the HCN API."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from kubeproxy.windows.calls import Entity, HnsNotice
from kubeproxy.windows.errors import check

_HERE = Path(__file__).parent
_COMPILER = "x86_64-w64-mingw32-gcc"
_FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")


def build(folder: Path) -> Path:
    """Compiles libraries and client into a folder; returns the client.

    Raises:
        CalledProcessError: something does not compile.
    """

    def compiled(name: str, *options: str) -> None:
        source = _HERE / f"{Path(name).stem}.c"
        subprocess.run([_COMPILER, *_FLAGS, source, "-o", folder / name, *options], check=True)

    for library in ("computenetwork", "vmcompute"):
        export = f"-Wl,--export-all-symbols,--out-implib,{folder}/lib{library}_stub.a"
        compiled(f"{library}.dll", "-shared", "-lole32", export)
    compiled("client.exe", "-L", str(folder), "-lcomputenetwork_stub", "-lvmcompute_stub", "-lole32")
    return folder / "client.exe"


class WineCalls:
    """See `calls.Calls`; for a `with` block."""

    def __init__(self, client: Path, prefix: Path) -> None:
        """Starts nothing yet.

        Args:
            client: the program.
            prefix: an empty folder for Wine's files.
        """
        self._client, self._prefix = client, prefix

    def __enter__(self) -> Self:
        environment = {
            **os.environ,
            "WINEPREFIX": str(self._prefix),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "computenetwork,vmcompute=n;mscoree,mshtml=",
        }
        self._process = subprocess.Popen(
            ["wine64" if _has("wine64") else "wine", self._client],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
            encoding="utf-8",
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def version(self) -> str:
        """See `Calls`."""
        return self._call("HNSCall", "GET", "/globals/version", "")[1]

    def enumerate(self, entity: Entity, query: str) -> str:
        """See `Calls`."""
        return self._call(f"HcnEnumerate{entity.plural}", query)[1]

    def open(self, entity: Entity, ident: str) -> int:
        """See `Calls`."""
        return self._call(f"HcnOpen{entity.value}", ident)[0]

    def query(self, entity: Entity, handle: int, query: str) -> str:
        """See `Calls`."""
        return self._call(f"HcnQuery{entity.value}Properties", str(handle), query)[1]

    def create_endpoint(self, network: int, ident: str, settings: str) -> int:
        """See `Calls`."""
        return self._call("HcnCreateEndpoint", str(network), ident, settings)[0]

    def create_load_balancer(self, ident: str, settings: str) -> int:
        """See `Calls`."""
        return self._call("HcnCreateLoadBalancer", ident, settings)[0]

    def modify_load_balancer(self, handle: int, settings: str) -> None:
        """See `Calls`."""
        self._call("HcnModifyLoadBalancer", str(handle), settings)

    def delete(self, entity: Entity, ident: str) -> None:
        """See `Calls`."""
        self._call(f"HcnDelete{entity.value}", ident)

    def close(self, entity: Entity, handle: int) -> None:
        """See `Calls`."""
        self._call(f"HcnClose{entity.value}", str(handle))

    def register(self, notified: Callable[[HnsNotice], None]) -> int:
        """See `Calls`."""
        self._notified = notified
        return self._call("HcnRegisterServiceCallback")[0]

    def unregister(self, handle: int) -> None:
        """See `Calls`."""
        self._call("HcnUnregisterServiceCallback", str(handle))

    def disconnect(self) -> None:
        """HNS stops."""
        self._notified(HnsNotice(self._call("Disconnect")[0]))

    def handles(self) -> int:
        """How many handles are open."""
        return self._call("OpenHandles")[0]

    def _call(self, function: str, *arguments: str) -> tuple[int, str]:
        """The handle or the text that a function returns.

        Raises:
            HcnError: it failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join((function, *arguments)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the client ended with {self._process.wait(10)} in {function}"
        status, handle, text, record = answer.rstrip("\r\n").split("\t")
        check(function, int(status), record)
        return int(handle), text


def _has(program: str) -> bool:
    return any(Path(folder, program).exists() for folder in os.environ["PATH"].split(":"))
