"""Two daemons on one node, and `--cleanup` beside a daemon."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Bare, Station, until
from tests.kernel.test_cleanup import clean_up
from tests.lab.daemon import Daemon
from tests.lab.topology import ROOT, Lab


def station(space: str, path: Path, name: str, mode: str) -> Station:
    made = Station(Bare(space), path / name, mode=mode, nodePortAddresses=["192.0.2.0/24"])
    made.folder.put(service("web", "10.96.0.10"), endpoints("web", "10.244.1.11"))
    return made


def rules(space: str) -> list[str]:
    """All there is in nf_tables, which the iptables programs here use, too; without counters."""
    listed = Bare(space).run("node", "nft", "--stateless", "list", "ruleset")
    return [line.partition(" counter packets")[0] for line in listed.splitlines()]


@pytest.fixture
def paths(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(("first", "second"), [("iptables", "nftables"), ("nftables", "iptables")])
def test_a_second_daemon_changes_nothing(space: str, paths: Path, first: str, second: str) -> None:
    with station(space, paths, "first", first).running() as daemon:
        before = rules(space)
        other = station(space, paths, "second", second)
        for flags in ([], ["--init-only"]):
            with Bare(space).inside("node"):
                done = subprocess.run(
                    other.command(*flags), check=False, capture_output=True, text=True, timeout=PATIENCE,
                    env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")},
                )  # fmt: skip
            assert done.returncode == 1
            *_, waits, error = done.stderr.splitlines()
            pid = daemon.process.pid
            assert waits.endswith(
                f"Another kube-proxy (process {pid}) runs in this network namespace: waiting 10 s for it to end"
            )
            assert error.endswith(
                f"another kube-proxy (process {pid}) runs in this network namespace: nothing was changed; stop it first"
            )
        assert rules(space) == before


@pytest.mark.parametrize("kill", [False, True], ids=["ended", "killed"])
def test_a_new_daemon_waits_for_the_old_one(space: str, paths: Path, *, kill: bool) -> None:
    old, new = (station(space, paths, name, "nftables") for name in ("first", "second"))
    with old.running() as first:
        second = Daemon(Bare(space), new.command(), timeout=PATIENCE)

        def end() -> None:
            until(lambda: "Another kube-proxy" in second.log() if hasattr(second, "process") else False)
            first.kill() if kill else first.stop()

        ending = threading.Thread(target=end)
        ending.start()
        with second:
            ending.join()
            assert f"(process {first.process.pid})" in second.log()
            assert "10.244.1.11" in "".join(rules(space))


def test_process_1_of_a_container_can_be_ended_while_it_waits(space: str, paths: Path) -> None:
    """The kernel sends process 1 only signals that it handles."""
    with station(space, paths, "first", "nftables").running():
        other = station(space, paths, "second", "nftables")
        with (
            Bare(space).inside("node"),
            subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", *other.command()],
                stderr=subprocess.PIPE, text=True,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")},
            ) as outer,
        ):  # fmt: skip
            assert outer.stderr is not None
            assert any("Another kube-proxy" in line for line in outer.stderr)
            (inner,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            os.kill(int(inner), signal.SIGTERM)
            assert "nothing was changed" not in outer.stderr.read()
            assert outer.wait(PATIENCE) == 128 + signal.SIGTERM


def test_two_namespaces_are_two_nodes(space: str, lab: Lab, paths: Path) -> None:
    here, there = station(space, paths, "first", "nftables"), Station(lab, paths / "second", mode="nftables")
    with here.running(), there.running() as other:
        assert "Another kube-proxy" not in other.log()


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_clean_up_beside_a_daemon(space: str, paths: Path, mode: str) -> None:
    made = station(space, paths, "first", mode)
    with made.running() as daemon:
        before = rules(space)
        done = clean_up(made.lab)
        assert done.returncode == 1
        assert (
            f"another kube-proxy (process {daemon.process.pid}) runs in this network namespace and would restore what"
            " --cleanup removes: nothing was removed; stop it first, or add --cleanup-force" in done.stderr
        )
        assert rules(space) == before
        forced = clean_up(made.lab, flags=("--cleanup-force",))
        assert forced.returncode == 0
        assert f"Cleaning up although another kube-proxy (process {daemon.process.pid})" in forced.stderr
        until(lambda: "10.244.1.11" in "".join(rules(space)), "the daemon restores its rules")
        daemon.stop()
    assert clean_up(made.lab).returncode == 0
    assert "KUBE" not in "".join(rules(space))
    assert "10.244.1.11" not in "".join(rules(space))
