"""Near endpoints get all connections until they are full, then the others do: modes whose rules cannot count."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, until
from tests.kernel.test_endings import EACH, connected, say
from tests.kernel.test_explain import explain
from tests.kernel.traffic import TALK_PORT, talkers
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, NODE_PORT = "10.96.0.10", 30080


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_near_endpoints_come_first_up_to_their_limit(lab: Lab, tmp_path: Path, mode: str) -> None:
    station = Station(lab, tmp_path, mode=mode)
    web = service("web", WEB, type="NodePort", ports=[types.ServicePort(80, node_port=NODE_PORT)])
    given = types.Annotations(prefer="node", spill_over=str(EACH))
    station.folder.put(
        replace(web, metadata=replace(web.metadata, annotations=given)),
        endpoints("web", EP11, EP12, port=TALK_PORT, local=[EP11], node=NODE_NAME),
    )

    def excluded() -> dict[str, str]:
        """The endpoints that are not used, and why."""
        _, found, _ = explain(station, "--from", "10.244.1.100", "--to", f"{WEB}:80")
        assert found["kernel"] == "agrees"
        return {each["address"]: each["reason"] for each in found["excluded"]}

    def chosen() -> str:
        """The endpoint of one more connection, which ends at once."""
        [(client, endpoint)] = connected(lab, "client", WEB, number=1)
        client.close()
        return endpoint

    with talkers(lab, "ep11", "ep12"), station.running():
        first = connected(lab, "client", WEB, number=EACH - 2)
        assert {endpoint for _, endpoint in first} == {EP11}
        assert excluded() == {EP12: "not near"}
        outside = connected(lab, "out", "192.0.2.1", NODE_PORT, number=2)
        assert {endpoint for _, endpoint in outside} == {EP11}
        until(lambda: chosen() == EP12)
        assert excluded() == {EP11: "full"}
        more = connected(lab, "client", WEB)
        assert {endpoint for _, endpoint in more} == {EP12}
        for client, _ in (*first, *outside, *more):
            say(client)
        for client, _ in first[:5]:
            client.close()
        until(lambda: chosen() == EP11)
        for client, _ in (*first[5:], *outside, *more):
            say(client)
