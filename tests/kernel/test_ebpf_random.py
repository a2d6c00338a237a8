"""What sockets get in random clusters is what the verdict says, in ebpf mode, for both scopes."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given

from tests.fakes.manners import NFTABLES
from tests.kernel import bpffs
from tests.kernel.test_random_cases import START_SECONDS, examples, expected
from tests.lab import cases, probe, random_case
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.random_case import Document
from tests.lab.topology import Lab
from tests.scenarios.carried import forgive
from tests.scenarios.connected import connected
from tests.scenarios.world import World


@pytest.mark.parametrize("scope", ["host", "all"])
@examples(4)
@given(config=random_case.configurations(), objects=random_case.objects())
def test_sockets_go_where_the_verdict_says(
    lab: Lab, scope: str, config: Document, objects: list[Document]
) -> None:
    lab.reset()
    asked = random_case.fronts([each for each in objects if each["kind"] == "Service"])
    count = sum(len(each["endpoints"]) for each in objects if each["kind"] == "EndpointSlice")
    with tempfile.TemporaryDirectory() as folder, bpffs.places() as places:
        rules = World(*cases.lay_out(config, objects, "nftables", Path(folder, "rules")))
        file, manifests = cases.lay_out(config, objects, "ebpf", Path(folder, "ebpf"))
        bpffs.configure(file, places, scope=scope, strict=True)
        wanted = connected(World(file, manifests), expected(rules, NFTABLES, asked))
        with Daemon(lab, kube_proxy(file, manifests), timeout=START_SECONDS):
            measured = probe.outcomes(lab, wanted, count, here=lambda: bpffs.inside(places))
    forgive(wanted, measured, fronts="")
    assert measured == wanted, probe.differences(wanted, measured)
