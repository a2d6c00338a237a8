"""`verify` lists tracked flows that lead to endpoints that are gone."""

import socket
from pathlib import Path

from tests.fakes.cluster import endpoints
from tests.kernel.test_verify import DNS, WEB, run, station_of, verify
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab


def test_flows_to_endpoints_that_are_gone(lab: Lab, tmp_path: Path) -> None:
    station = station_of(lab, tmp_path, "nftables")
    with lab.inside("client"):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.connect((DNS, 53))
        datagrams.send(b"x")
        stream = socket.create_connection((WEB, 80), timeout=20)
    with datagrams, stream:
        reached = stream.recv(64).decode().split(" ")[0]
        other = EP12 if reached == EP11 else EP11
        assert verify(station)[1]["flows"] == []
        station.folder.put(
            endpoints("dns", EP12, port=5353, port_name="dns", protocol="UDP"),
            endpoints("web", other, port_name="http", local=(other,), node=NODE_NAME),
        )
        status, answer = verify(station)
        text = run(station, "verify").stdout
    assert status == 2
    flows = {flow["service"]: flow for flow in answer["flows"]}
    assert (flows["default/dns"]["endpoint"], flows["default/dns"]["ends"]) == (f"{EP11}:5353", False)
    assert (flows["default/web"]["endpoint"], flows["default/web"]["ends"]) == (f"{reached}:8080", True)
    assert "1 flow to no endpoint" in text
    assert "1 connection to endpoints that are gone" in text
