"""The status page among 10,000 Services with 10 endpoints each: how long its answers take, and what an open page costs.

An answer is compared with /proxyMode, which takes a request and no work. While a search runs, the same is asked over and over:
its longest time is about the longest time that a search keeps other work waiting.
"""

import contextlib
import http.client
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench import objects, rig
from tests.lab import netns

SERVICES, ENDPOINTS = 10_000, 10
IDLE_SECONDS = 30
REFRESH_SECONDS = 5  # as in page.js


def main(rounds: int) -> None:
    cluster = [objects.service(i) for i in range(SERVICES)]
    cluster += [objects.slice_(i, objects.endpoints(i, ENDPOINTS)) for i in range(SERVICES)]
    endpoint = objects.endpoints(SERVICES // 2, ENDPOINTS)[0]
    front = cluster[SERVICES // 2]["spec"]["clusterIP"]
    with tempfile.TemporaryDirectory() as folder, rig.node() as node:
        Path(folder, "cluster.json").write_text(
            json.dumps({"apiVersion": "v1", "kind": "List", "items": cluster})
        )
        with rig.Proxy(node, "--proxy-mode", "nftables", "--manifests", folder) as proxy, netns.inside(node):
            _get("/page/state")
            base = rig.median([rig.timed(lambda: _get("/proxyMode")) for _ in range(10 * rounds)])
            rig.row("/proxyMode", _ms(base))
            for what, path in (
                ("the page", "/"),
                ("state, nothing has changed", "/page/state"),
                ("the first 50 Services", "/page/services"),
                ("search by name", "/page/services?search=999"),
                ("search by ClusterIP", f"/page/services?search={front}"),
                ("search by endpoint", f"/page/services?search={endpoint}"),
                ("search that finds nothing", "/page/services?search=nothing"),
            ):
                found = rig.median([_timed(path) for _ in range(rounds)])
                rig.row(what, _ms(found), f"{found / base:.0f} x")
            rig.row(
                "explain, kernel compared",
                _ms(rig.median([rig.timed(lambda: _explain(front)) for _ in range(rounds)])),
            )
            rig.row("another request during a search, longest", _ms(_longest(rounds)))
            for what, work in (("no page open", lambda: None), ("a page open", lambda: _get("/page/state"))):
                before = proxy.processor_seconds()
                for _ in range(IDLE_SECONDS // REFRESH_SECONDS):
                    work()
                    time.sleep(REFRESH_SECONDS)
                share = (proxy.processor_seconds() - before) / IDLE_SECONDS
                rig.row(f"processor, {what}", f"{100 * share:.2f} %")


def _longest(rounds: int) -> float:
    """The longest time of a small request while searches run."""
    done = threading.Event()

    def search() -> None:
        for _ in range(rounds):
            _get("/page/services?search=nothing")
        done.set()

    searching = threading.Thread(target=search)
    searching.start()  # in the namespace of this thread
    times = []
    while not done.is_set():
        times.append(rig.timed(lambda: _get("/proxyMode")))
    searching.join()
    return max(times)


def _timed(path: str) -> float:
    return rig.timed(lambda: _get(path))


def _explain(front: str) -> None:
    question = json.dumps({"from": "10.128.0.9", "to": f"{front}:80"})
    answer = _get("/page/explain", "POST", question, {"Content-Type": "application/json"})
    if json.loads(answer)["answer"]["kernel"] != "agrees":
        raise SystemExit(answer)


def _get(
    path: str, method: str = "GET", body: str | None = None, headers: dict[str, Any] | None = None
) -> bytes:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", 10249, timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {content!r}")
    return content


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
