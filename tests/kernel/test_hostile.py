"""Objects that are not as they should be, in a folder that the whole daemon serves from, under the real programs.

What is refused and said is in tests/unit/test_hostile.py; here is shown that nothing of it reaches the kernel, that what is
left of it does, and that the neighbour is served. The Services share addresses, too, which no API server would allow.
"""

import json
from pathlib import Path

import pytest

from kubeproxy.backends.programs import Variant
from tests import hostile
from tests.kernel.daemons import Station, answers, ask, until
from tests.lab.topology import EP11, EP12, Lab

GOOD, FRONT = "10.96.8.1", "10.96.7.1"
CASES = [case for case in hostile.CASES if case.name != "many-ports"]  # a minute, in iptables mode


def write(path: Path, obj: hostile.Wire) -> None:
    """Puts an object into the folder at one stroke."""
    (path.parent / ".new").write_text(json.dumps(obj))
    (path.parent / ".new").rename(path)


@pytest.mark.parametrize(
    ("mode", "variant"), [("iptables", "legacy"), ("iptables", "nf_tables"), ("nftables", "nf_tables")]
)
def test_they_harm_nobody(lab: Lab, tmp_path: Path, mode: str, variant: Variant) -> None:
    station = Station(lab, tmp_path, variant, mode=mode)
    folder = station.folder.path
    write(folder / "good.json", hostile.service("good", GOOD))
    write(folder / "slice.json", hostile.endpoint_slice("good", EP11))
    half = len(CASES) // 2
    for number, case in enumerate(CASES[:half]):
        write(folder / f"bad-{number}.json", {"kind": "List", "items": list(case.objects)})
    with station.running() as daemon:
        assert ask(lab, "client", GOOD) == EP11
        for number, case in enumerate(CASES[half:], half):
            write(folder / f"bad-{number}.json", {"kind": "List", "items": list(case.objects)})
        write(folder / "slice.json", hostile.endpoint_slice("good", EP12))
        until(lambda: answers(lab, "client", GOOD, EP12))
        last = CASES[-1].name
        until(lambda: f"bad-{len(CASES) - 1}.json: " in daemon.log(), last)
        until(lambda: FRONT in _rules(station, mode), "what is left of them is served")
        assert not _refused_names(station, mode)
        for file in folder.glob("bad-*"):
            file.unlink()
        until(lambda: FRONT not in _rules(station, mode))
        assert ask(lab, "client", GOOD) == EP12
        log = daemon.log()
    assert "Traceback" not in log
    assert "rules refused" not in log
    assert "sync failed" not in log
    assert not any(line.startswith("-") for line in log.splitlines()), "a name broke a line"


def _rules(station: Station, mode: str) -> str:
    if mode == "nftables":
        return station.lab.run("node", "nft", "list", "table", "ip", "kube-proxy")
    return station.counted()


def _refused_names(station: Station, mode: str) -> set[str]:
    """Services without a good part of which there is something in the rules."""
    rules = _rules(station, mode)
    assert "default/good" in rules or mode == "nftables"
    refused = {case.name for case in CASES if not case.ports}
    return {name for name in refused if f"default/{name}" in rules or f"default-{name}" in rules}
