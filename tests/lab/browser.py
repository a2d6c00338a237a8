"""Chromium without a window, driven through a pipe by the DevTools protocol.

It runs in a network namespace, and needs no port. What goes wrong in a page (exceptions, errors in the console, violations of
its Content-Security-Policy, requests that fail) is collected, so that a test can demand that there is nothing.
Source: https://chromedevtools.github.io/devtools-protocol/.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.lab.topology import Lab

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # it runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-pipe",
    "--window-size=1200,1100",
)


class Browser:
    """A browser with one page, for a `with` block.

    Attributes:
        problems: what went wrong in the page since it was opened.
    """

    def __init__(self, lab: Lab, role: str = "node", patience: float = 60.0) -> None:
        """Does nothing yet.

        Args:
            lab: where it runs.
            role: the namespace it runs in.
            patience: how long anything may take, in seconds.
        """
        self._lab = lab
        self._role = role
        self._patience = patience
        self._number = 0
        self._received = b""
        self._session = ""
        self.problems: list[str] = []

    def __enter__(self) -> Self:
        program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
        if program is None:
            pytest.fail(f"this test needs one of {', '.join(_PROGRAMS)}", pytrace=False)
        self._folder = tempfile.TemporaryDirectory(prefix="lab-browser-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def wire() -> None:  # the protocol's file descriptors are 3 and 4
            given, taken = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(given, 3)
            os.dup2(taken, 4)

        with self._lab.inside(self._role):
            self.process = subprocess.Popen(
                [program, *_FLAGS, f"--user-data-dir={self._folder.name}/profile", "about:blank"],
                preexec_fn=wire,  # noqa: PLW1509 it only copies descriptors
                close_fds=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": self._folder.name,
                    "LANG": "en_US.UTF-8",
                    "TZ": "UTC",
                },
                start_new_session=True,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def open(self, url: str) -> None:
        """Opens a page; returns when it is loaded."""
        self.problems.clear()
        failed = self._call("Page.navigate", url=url).get("errorText")
        if failed:
            self.problems.append(failed)
        self.until("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript; a promise is awaited.

        Raises:
            AssertionError: it throws.
        """
        found = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until an expression is true.

        Raises:
            AssertionError: it does not become true.
        """
        deadline = time.monotonic() + self._patience
        while not self.evaluate(f"!!({expression})"):
            assert time.monotonic() < deadline, f"{expression}; {self.problems}; {self.text()[:2000]}"
            time.sleep(0.05)

    def text(self) -> str:
        """What a person reads."""
        found: str = self.evaluate("document.body.innerText")
        return found

    def type(self, text: str) -> None:
        """Types text into what has the focus."""
        self._call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Presses a key.

        Args:
            key: its name, e.g. "Enter".
            code: its virtual key code.
            text: what it enters.
        """
        for kind in ("keyDown", "keyUp"):
            given = {"text": text} if text and kind == "keyDown" else {}
            self._call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **given)

    def prefer(self, scheme: str) -> None:
        """Sets what the person prefers: "light" or "dark"."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def accessible(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader finds."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]

    def screenshot(self, path: Path) -> None:
        """Writes a picture of the visible part as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self._patience
        while True:
            received = self._receive(deadline, method)
            if received.get("id") == self._number:
                assert "error" not in received, f"{method}: {received['error']}"
                result: dict[str, Any] = received["result"]
                return result
            self._note(received)

    def _receive(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._received:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._in], [], [], max(0.0, left))
            part = os.read(self._in, 1 << 20) if readable else b""
            assert part, f"the browser does not answer {method}, its status is {self.process.poll()}"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def _note(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = given["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if given["type"] in {"error", "warning", "assert"}:
                self.problems.append(" ".join(str(each.get("value")) for each in given["args"]))
            case "Log.entryAdded" if given["entry"]["level"] in {"error", "warning"}:
                self.problems.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
            case "Network.loadingFailed" if not given.get("canceled"):
                self.problems.append(given["errorText"])

    def _end(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()
