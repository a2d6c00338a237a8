"""The demo: a small node out of network namespaces, kube-proxy on a folder of manifests, and real traffic.

`make demo` runs it. Everything happens in namespaces that are gone afterwards, also when it is interrupted.
"""

import argparse
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.lab.daemon import Daemon
from tests.lab.topology import NODE_ADDRESSES, NODE_NAME, Lab

MANIFESTS = Path(__file__).parent / "manifests"
WHO = {
    "client": "a Pod (10.244.1.100, fd00:10:244:1::64)",
    "ep11": "a backend itself (10.244.1.11)",
    "node": "a process on the node",
    "out": "a client far away (198.51.100.7)",
}
HELD = {
    "iptables": ("iptables-save -t nat", r"^-A KUBE-S.*shop/web[: ]"),
    "nftables": ("nft list table ip kube-proxy", r"10\.96\.0\.80 "),
    "ipvs": ("ipvsadm -Sn", r"10\.96\.0\.80:"),
    "userspace": ("nft list table ip kube-proxy", r"10\.96\.0\.80 "),
}
"""By mode: what lists its rules, and which lines are of Service shop/web."""
BOLD, DIM, GREEN, RED, PLAIN = (
    ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m")
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    else [""] * 5
)


def say(text: str = "") -> None:
    print(text, flush=True)


def chapter(text: str) -> None:
    say(f"\n{BOLD}{text}{PLAIN}")


def ask(lab: Lab, role: str, address: str, port: int, kind: int = socket.SOCK_STREAM) -> tuple[str, str]:
    """One request; the backend that answered and the address it saw, or the error and nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.inside(role):
        client = socket.socket(family, kind)
    with client:
        client.settimeout(2)
        try:
            client.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                client.send(b"?")
            backend, _, source = client.recv(200).decode().strip().partition(" ")
        except TimeoutError:
            return "no answer", ""
        except OSError as e:
            return f"{e.strerror}", ""
    return backend, source


def show(
    lab: Lab, title: str, role: str, address: str, port: int, *, tries: int = 60, udp: bool = False
) -> None:
    """Many requests to one address, and which backends they went to."""
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    answers = Counter(ask(lab, role, address, port, kind) for _ in range(tries))
    say(f"\n  {title}: {WHO[role]} asks {BOLD}{address} port {port}{PLAIN}, {tries} times")
    for (backend, source), count in sorted(answers.items()):
        bar = "#" * max(1, round(30 * count / tries))
        if not source:
            say(f"    {RED}{backend:20}{PLAIN} {count:3} {bar}")
            continue
        seen = f"sees {source}" + (", the node" if source in NODE_ADDRESSES and role != "node" else "")
        say(f"    {GREEN}{backend:20}{PLAIN} {count:3} {bar:31}{DIM}{seen}{PLAIN}")


class Stream(threading.Thread):
    """Requests without a pause, from a Pod to a ClusterIP, and what came of each."""

    def __init__(self, lab: Lab, address: str, port: int) -> None:
        super().__init__(daemon=True)
        self.lab, self.address, self.port = lab, address, port
        self.answers: list[tuple[float, str, bool]] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            backend, source = ask(self.lab, "client", self.address, self.port)
            self.answers.append((time.monotonic(), backend, bool(source)))

    def stop(self) -> None:
        self.done.set()
        self.join()


def edit(file: Path, before: str, after: str) -> None:
    """Changes a manifest as an editor does: writes a new file and puts it in the place of the old one."""
    new = file.with_suffix(".new")
    new.write_text(file.read_text().replace(before, after))
    new.rename(file)


def swap(lab: Lab, web: Path, before: str, after: str, backend: str, *, appears: bool) -> None:
    """Edits a manifest under a stream of requests and tells how soon the stream followed and what it lost."""
    stream = Stream(lab, "10.96.0.80", 80)
    stream.start()
    time.sleep(0.7)
    edited = time.monotonic()
    edit(web, before, after)
    time.sleep(1.5)
    stream.stop()
    mine = [at for at, who, _ in stream.answers if who == backend]
    failed = sum(not good for _, _, good in stream.answers)
    moment = min((at for at in mine if at > edited), default=edited) if appears else max(mine, default=edited)
    what = "first request to" if appears else "last request to"
    say(
        f"    {len(stream.answers)} requests meanwhile, {failed} failed; {what} {backend} {1e3 * (moment - edited):.0f} ms after the edit"
    )
    if failed:
        raise SystemExit("requests failed although there was always a live backend")


DARK_SECONDS = 8.0
"""How long an endpoint is dark; requests of its first two seconds are counted apart."""


def dark(lab: Lab) -> None:
    """An endpoint answers nothing any more, while the manifests say that it is ready."""
    titles = {"10.96.0.85": "shop/trusting", "10.96.0.84": "shop/careful (silent-endpoints: skip)"}
    streams = [Stream(lab, address, 80) for address in titles for _ in range(6)]
    for stream in streams:
        stream.start()
    time.sleep(0.5)
    lab.run("ep13", "ip", "route", "replace", "blackhole", "default")
    began = time.monotonic()
    time.sleep(DARK_SECONDS)
    for stream in streams:
        stream.done.set()
    for stream in streams:
        stream.join()
    lab.run("ep13", "ip", "route", "replace", "default", "via", "10.244.1.1", "dev", "eth0", "onlink")
    for address, title in titles.items():
        answers = [answer for stream in streams if stream.address == address for answer in stream.answers]
        failed = [at - 2 - began for at, _, good in answers if not good]  # each has waited for two seconds
        first = sum(at <= 2 for at in failed)
        say(
            f"    {title:38} {len(answers):6,} requests, without an answer: {first} begun in the first 2 s,"
            f" {len(failed) - first} in the next {DARK_SECONDS - 2:.0f} s"
        )


def story(lab: Lab, folder: Path, mode: str) -> None:
    chapter("1. Services on a node")
    show(lab, "ClusterIP", "client", "10.96.0.80", 80)
    show(lab, "ClusterIP, IPv6", "client", "fd00:10:96::80", 80)
    show(lab, "ClusterIP, hairpin", "ep11", "10.96.0.80", 80)
    show(lab, "ClusterIP", "node", "10.96.0.80", 80)
    show(lab, "node port", "out", "192.0.2.1", 30080)
    show(lab, "external IP", "out", "203.0.113.10", 80)
    show(lab, "load balancer", "out", "203.0.113.80", 80)

    chapter("2. Keeping what matters")
    show(lab, "externalTrafficPolicy Local keeps the client's address", "out", "203.0.113.81", 80)
    show(lab, "session affinity keeps the backend", "client", "10.96.0.82", 80)
    show(lab, "UDP", "client", "10.96.0.10", 53, udp=True)
    show(lab, "no backend yet: refused at once", "client", "10.96.0.83", 80, tries=5)

    chapter("3. A backend goes: 10.244.1.12 is taken out of web.yaml")
    line = "- {addresses: [10.244.1.12], nodeName: bench-node}\n"
    web = folder / "web.yaml"
    swap(lab, web, line, "", "10.244.1.12", appears=False)
    show(lab, "ClusterIP", "client", "10.96.0.80", 80)

    chapter("4. A backend comes: 10.244.1.14 is added")
    first = "- {addresses: [10.244.1.11], nodeName: bench-node}\n"
    swap(lab, web, first, first + first.replace("1.11", "1.14"), "10.244.1.14", appears=True)
    show(lab, "ClusterIP", "client", "10.96.0.80", 80)

    chapter("5. Shares: the new backend, 10.244.1.13, has weight 1, each of the others has weight 4")
    show(lab, "weights", "client", "10.96.0.86", 80, tries=90)
    if mode == "nftables":
        show(lab, "Maglev hashing: a client has one backend, on every node", "client", "10.96.0.87", 80)
        show(lab, "another client", "out", "10.96.0.87", 80)

    chapter("6. A backend goes dark: 10.244.1.13 answers nothing, and nobody says so")
    dark(lab)

    chapter("7. What the kernel holds for shop/web, in the words of the system's own program")
    command, wanted = HELD[mode]
    listed = lab.run("node", *command.split()).splitlines()
    lines = [line.strip() for line in listed if re.search(wanted, line)]
    say(f"  # {command}")
    for line in lines[:12]:
        say(f"    {DIM}{line}{PLAIN}")
    say(f"    {DIM}{len(lines)} lines for it, of {len(listed)} in all{PLAIN}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", default="iptables", choices=HELD, help="proxy mode (default: iptables)")
    mode = parser.parse_args().mode
    if os.geteuid() != 0:
        raise SystemExit("the demo builds network namespaces: it needs root")
    started = time.monotonic()
    say(
        f"{BOLD}kube-proxy without Kubernetes{PLAIN}: a node, five Pods, a router, another node and the world, in network namespaces"
    )
    with tempfile.TemporaryDirectory() as temporary, Lab() as lab:
        folder = Path(temporary, "manifests")
        shutil.copytree(MANIFESTS, folder)
        command = [
            "kube-proxy",
            "--proxy-mode",
            mode,
            "--manifests",
            str(folder),
            "--cluster-cidr",
            "10.244.0.0/16,fd00:10:244::/48",
        ]
        say(f"\n  # {' '.join(command)} --hostname-override {NODE_NAME}")
        program = [sys.executable, "-m", "kubeproxy", *command[1:], "--hostname-override", NODE_NAME]
        with Daemon(lab, program):
            say(
                f"  {DIM}running on the node, {1e3 * (time.monotonic() - started):.0f} ms after the first namespace{PLAIN}"
            )
            story(lab, folder, mode)
    say(f"\n{BOLD}Done{PLAIN} in {time.monotonic() - started:.0f} s; the namespaces are gone.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (
        AssertionError,
        OSError,
        RuntimeError,
    ) as e:  # the daemon did not start, or the namespaces could not be made
        errors = [line for line in str(e).splitlines() if line.startswith("E")]
        raise SystemExit("\n".join(["the demo cannot continue:", *(errors or [str(e)])])) from None
