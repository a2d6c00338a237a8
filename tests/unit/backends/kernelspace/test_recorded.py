"""What the reference's own Windows proxier did, case by case: the same documents and states, but for the deviations.

`tests/oracle/windows/deviations.yaml` is the table of deviations: each with its reason and with what is there instead.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kubeproxy.api import types
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.values import REMOTE_ENDPOINT, HcnEndpoint
from tests.fakes.hns import HnsProxy, WindowsNode, profile, show

ORACLE = Path(__file__).parents[3] / "oracle/windows"
CASES: dict[str, Any] = {case["name"]: case for case in json.loads((ORACLE / "cases.json").read_text())}
DEVIATIONS: dict[str, Any] = yaml.safe_load((ORACLE / "deviations.yaml").read_text())
CALLS = {
    "ListEndpoints": "HcnEnumerateEndpoints",
    "CreateEndpoint": "HcnCreateEndpoint",
    "CreateLoadBalancer": "HcnCreateLoadBalancer",
    "UpdateLoadBalancer": "HcnModifyLoadBalancer",
    "GetNetwork": "HcnEnumerateNetworks",
    "GetLoadBalancer": "HcnOpenLoadBalancer",
}
OPERATIONS = {"HcnCreateEndpoint": "CreateEndpoint", "HcnCreateLoadBalancer": "CreateLoadBalancer"}


class Recording:
    """A case, played."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.at = WindowsNode(
            profile(
                modify=case.get("featureModifyLoadbalancer", False),
                affinity=case.get("featureSessionAffinity", False)
                or case.get("featureModifyLoadbalancer", False),
                dsr=not case.get("featureNoDSR", False),
            ),
            case["network"],
            local=(),
            dsr=case["dsr"],
            source_vip=case["sourceVip"],
            root_endpoint="cbr0",
            health_vips=case.get("forwardHealthCheckVip", False),
            healthz_port=case.get("healthzPort", 0),
        )
        self.names: dict[str, str] = {}
        self.config = self.at.config(case["family"])
        self.proxy: HnsProxy | None = None
        self.failures: dict[tuple[str, str], str] = {}
        self.hidden = False

    def play(self, step: dict[str, Any]) -> None:
        """One step, and a sync of what it changed; where HNS was changed, what a look finds is repaired."""
        hns = self.at.hns
        for each in step.get("hnsAdd", ()):
            flags = REMOTE_ENDPOINT if each["remote"] else 0
            mac = each["mac"].lower()
            made = HcnEndpoint(self.at.network, tuple(each["ips"]), mac, flags, name=each["name"])
            self.names[each["id"]] = hns.add_endpoint(made)
        for name in step.get("hnsDeleteEndpoints", ()):
            hns.remove(Entity.ENDPOINT, self._id_of(name))
        if step.get("hnsDeleteLoadBalancers"):
            for ident in hns.load_balancers():
                hns.remove(Entity.LOAD_BALANCER, ident)
        hns.hide_network(self.at.network, hidden=step.get("noNetwork", False))
        hns.heal()
        for failure in step.get("fail", ()):
            hns.fail(CALLS[failure["op"]], failure["code"], times=failure["times"], naming=failure["match"])
        if self.proxy is None:
            self.proxy = HnsProxy(self.at, self.config)
        self._tell(step)
        hns.calls.clear()
        self.at.clock.time += 60
        try:
            if not self.proxy.applied or not self.proxy.intact() or self.failures:
                self.failures = dict(self.proxy.full())
            else:
                self.failures = dict(self.proxy.sync())
        except SyncError as e:
            self.failures = {("", ""): str(e)}

    def _id_of(self, name: str) -> str:
        """Of the endpoints that the reference made, the only remote one counts."""
        if name in self.names:
            return self.names[name]
        (found,) = [ident for ident, each in self.at.hns.endpoints().items() if each.remote]
        return found

    def _tell(self, step: dict[str, Any]) -> None:
        assert self.proxy is not None
        services = [msgspec.convert(each, types.Service) for each in step["services"] or ()]
        slices = [msgspec.convert(each, types.EndpointSlice) for each in step["slices"] or ()]
        names = {(each.metadata.namespace, each.metadata.name) for each in services}
        for namespace, name in list(self.proxy.state.services):
            if (namespace, name) not in names:
                self.proxy.gone("Service", name, namespace)
                self.proxy.gone("EndpointSlice", f"{name}-1", namespace)
        self.proxy.tell(*services, *slices)

    def recorded_names(self, recorded: dict[str, Any]) -> dict[str, str]:
        """The addresses of endpoints in the recording."""
        return {e["id"]: e["ip"] for e in recorded["endpoints"]}

    def documents(self) -> list[tuple[str, Any]]:
        """What was created, with endpoints by their addresses."""
        endpoints = {ident: each.addresses[0] for ident, each in self.at.hns.endpoints().items()}
        found = []
        for call in self.at.hns.changes():
            if call.function in OPERATIONS and not call.code:
                document = json.loads(call.document)
                found.append((OPERATIONS[call.function], _readable(document, endpoints)))
        return sorted(found, key=_in_order)


def _in_order(created: tuple[str, Any]) -> str:
    return json.dumps(created, sort_keys=True)


def _readable(document: dict[str, Any], endpoints: dict[str, str]) -> dict[str, Any]:
    document = {**document}
    document.pop("HostComputeNetwork", None)
    if ids := document.get("HostComputeEndpoints"):
        document["HostComputeEndpoints"] = sorted(endpoints.get(i.lower(), endpoints.get(i, i)) for i in ids)
    if "MacAddress" in document:
        document["MacAddress"] = document["MacAddress"].replace(":", "-").lower()
    return document


def _expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ORACLE / "expected" / f"{name}.json").read_text())
    return found


def _states(step: dict[str, Any], case: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The load balancers and endpoints of a recorded step; it names endpoints by their first address."""
    added = [each for played in case["steps"] for each in played.get("hnsAdd", ())]
    second = {each["ips"][0]: each["ips"][-1] for each in added}
    balancers = []
    for each in step["loadBalancers"] or ():
        at, _, _family = each["key"].rpartition("/v6=")
        front, _, protocol = at.rpartition("/")
        vip, _, port = front.rpartition(":")
        balancers.append(
            show(
                vip.strip("[]"),
                int(port),
                each["internalPort"],
                int(protocol),
                each["flags"],
                each["portFlags"],
                each["distribution"],
                each["sourceVIP"],
                [second.get(b, b) if each["flags"] & 2 else b for b in each["backends"]],
            )
        )
    endpoints = [f"{e['ip']} {'remote' if e['remote'] else 'local'}" for e in step["endpoints"] or ()]
    return sorted(balancers), sorted(endpoints)


def _first_address(lines: list[str]) -> list[str]:
    return sorted(f"{line.split()[0].split('/')[0]} {line.split()[1]}" for line in lines)


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_state_is_that_of_the_reference(name: str) -> None:
    case, expected = CASES[name], _expected(name)
    table = DEVIATIONS.get(name, {})
    if "startError" in expected:
        with pytest.raises(UnsupportedError):
            Recording(case).play({"services": [], "slices": []})
        return
    recording = Recording(case)
    for number, (step, recorded) in enumerate(zip(case["steps"], expected["steps"], strict=True), 1):
        before = recording.at.ids()
        recording.play(step)
        balancers, endpoints = _states(recorded, case)
        deviation = table.get(number, {})
        balancers = sorted(deviation.get("balancers", balancers))
        endpoints = sorted(deviation.get("endpoints", endpoints))
        got = recording.at.state()
        assert (got[0], _first_address(got[1])) == (balancers, endpoints), f"step {number}"
        assert bool(recording.failures) == deviation.get("refused", False), recording.failures
        if "calls" in deviation:
            assert recording.at.calls() == deviation["calls"], f"step {number}"
        for front in deviation.get("kept", ()):
            assert recording.at.ids()[front] == before[front]
        if not deviation and number == 1:
            created = [(c["op"], c["doc"]) for c in recorded["calls"] or () if c["op"].startswith("Create")]
            names = recording.recorded_names(recorded)
            assert recording.documents() == sorted(
                ((op, _readable(doc, names)) for op, doc in created), key=_in_order
            )
