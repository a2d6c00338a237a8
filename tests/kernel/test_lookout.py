"""Word of what other programs do to the rules of nf_tables: by transaction, after a flood, and not of what is known."""

import asyncio
import subprocess
from collections.abc import Iterator

import pytest

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.watch import watch
from kubeproxy.backends.programs import NAT, Programs
from kubeproxy.netlink.nft.kernel import generation
from kubeproxy.netlink.nft.lookout import Lookout, words
from kubeproxy.netlink.nft.monitor import Monitor, TableEvent
from tests.lab import netns
from tests.machines import MACHINE

FLOOD = 150_000
RULES = 60_000


@pytest.fixture
def inside(space: str) -> Iterator[None]:
    with netns.inside(space):
        nft("add table ip t; add set ip t s { type ipv4_addr; }")
        yield


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def flood() -> None:
    elements = ",".join(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(FLOOD))
    nft(f"add element ip t s {{ {elements} }}")


def did(events: list[TableEvent]) -> list[tuple[str, str]]:
    return [(event.what, event.where) for event in events]


@pytest.mark.usefixtures("inside")
def test_transactions_are_told_one_by_one() -> None:
    with Monitor(MACHINE) as monitor:
        nft("add chain ip t before")
        monitor.join()
        nft("add chain ip t a; add rule ip t a accept")
        nft("add element ip t s { 10.0.0.1 }")
        first, second = monitor.read()
        assert did(first.events) == [("chain added", "a"), ("rule added", "a")]
        assert did(second.events) == [("element added", "s")]
        assert first.whole
        assert first.program.startswith("nft (process ")
        assert (first.generation, second.generation) == (generation(MACHINE) - 1, generation(MACHINE))
        assert monitor.read() == []


@pytest.mark.usefixtures("inside")
def test_after_a_flood_all_is_told_again() -> None:
    with Monitor(MACHINE) as monitor:
        monitor.join()
        flood()
        with pytest.raises(OSError, match="No buffer space"):
            monitor.read()
        assert all(not done.whole for done in monitor.read())
        monitor.forget()
        nft("delete set ip t s")
        (done,) = monitor.read()
        assert done.whole
        assert done.events[-1][2:4] == ("set deleted", "s")


@pytest.mark.usefixtures("inside")
async def test_what_led_to_what_was_looked_at_is_no_news() -> None:
    told: list[str] = []

    def heard(events: list[TableEvent], program: str) -> bool:
        told.append(words(events))
        return True

    lookout = Lookout(MACHINE, heard, lambda: told.append("lost"))
    lookout.join()
    nft("add chain ip t b")
    lookout.look()
    nft("add chain ip t c")
    lookout.catch_up(lambda: True)
    assert told == ["chain added in c"]
    flood()
    lookout.look()
    lookout.catch_up(lambda: True)
    lookout.catch_up(lambda: True)
    assert told[1:] == ["lost"]
    nft("add chain ip t d")
    lookout.catch_up(lambda: True)
    assert told[-1] == "chain added in d"
    lookout.close()


@pytest.mark.usefixtures("inside")
async def test_what_comes_after_a_flood_is_not_taken_for_a_part_of_it() -> None:
    told: list[str] = []

    def heard(events: list[TableEvent], program: str) -> bool:
        told.append(words(events))
        return True

    lookout = Lookout(MACHINE, heard, lambda: told.append("lost"))
    lookout.join()
    flood()
    await asyncio.sleep(0.1)
    assert told == ["lost"]
    nft("add chain ip t repair")
    await asyncio.sleep(0.1)
    assert told == ["lost", "chain added in repair"]
    lookout.close()


@pytest.mark.usefixtures("inside")
def test_a_process_that_is_ignored_makes_no_flood() -> None:
    with Monitor(MACHINE) as monitor:
        monitor.join()
        text = f"add element ip t s {{ {','.join(f'10.{i >> 8}.{i & 255}.1' for i in range(50_000))} }}\n"
        with subprocess.Popen(["nft", "-f", "-"], stdin=subprocess.PIPE, text=True) as program:
            monitor.ignore(program.pid)
            program.communicate(text)
        assert program.returncode == 0
        assert monitor.read() == []
        nft("add chain ip t others")
        (done,) = monitor.read()
        assert did(done.events) == [("chain added", "others")]


@pytest.mark.usefixtures("inside")
async def test_a_table_that_we_write_whole_is_no_flood() -> None:
    told: list[str] = []
    tables = Programs(MACHINE, IPV4, "iptables-nft-save", "iptables-nft-restore", "nf_tables")
    lookout = watch(tables, told.append)
    lookout.join()
    chain = names.SERVICES
    rules = (f"-A {chain} -d 10.{i >> 16}.{i >> 8 & 255}.{i & 255}/32 -j RETURN\n" for i in range(RULES))
    tables.restore(NAT, (f":{chain} - [0:0]\n", *rules))
    lookout.catch_up(lambda: True)
    assert told == []
    nft(f"add rule ip nat {chain} accept")
    lookout.catch_up(lambda: True)
    (what,) = told
    assert "rule added" in what
    lookout.close()
