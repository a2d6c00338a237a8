"""Nodes and ServiceCIDRs to rows."""

import pytest

from kubeproxy.api.rows import NodeRow
from tests.unit.api.flat import flat


class TestNode:
    def node(self, spec=None, addresses=(), **metadata):
        addresses = [{"type": type_, "address": address} for type_, address in addresses]
        return flat(
            "Node",
            {"metadata": {"name": "n1", **metadata}, "spec": spec, "status": {"addresses": addresses}},
        )

    def test_the_least(self):
        assert flat("Node", {"metadata": {"name": "n1"}}) == (NodeRow("n1"), {})

    @pytest.mark.parametrize(
        ("addresses", "expected"),
        [
            ([], ()),
            ([("InternalIP", "10.0.0.1")], ("10.0.0.1",)),
            ([("ExternalIP", "192.0.2.1")], ("192.0.2.1",)),
            ([("ExternalIP", "192.0.2.1"), ("InternalIP", "10.0.0.1")], ("10.0.0.1",)),
            ([("InternalIP", "10.0.0.1"), ("InternalIP", "10.0.0.2"), ("InternalIP", "fd00::1"), ("InternalIP", "fd00::2")],
             ("10.0.0.1", "fd00::1")),
            ([("InternalIP", "fd00::1"), ("InternalIP", "10.0.0.1")], ("fd00::1", "10.0.0.1")),
            # The first address decides the primary family, and every InternalIP goes before every ExternalIP.
            ([("ExternalIP", "192.0.2.1"), ("InternalIP", "fd00::1")], ("fd00::1", "192.0.2.1")),
            ([("ExternalIP", "2001:db8::1"), ("ExternalIP", "192.0.2.1")], ("2001:db8::1", "192.0.2.1")),
            ([("Hostname", "n1"), ("InternalDNS", "n1.local"), ("ExternalDNS", "x"), ("", "10.0.0.9")], ()),
            ([("InternalIP", "010.0.0.01")], ("10.0.0.1",)),
        ],
    )  # fmt: skip
    def test_addresses(self, addresses, expected):
        assert self.node(addresses=addresses) == (NodeRow("n1", addresses=expected), {})

    def test_a_bad_address(self):
        found, complaints = self.node(
            addresses=[("Hostname", "n1"), ("InternalIP", "n1"), ("InternalIP", "10.0.0.1")]
        )
        assert found.addresses == ("10.0.0.1",)
        assert list(complaints) == ["status.addresses[1]"]

    @pytest.mark.parametrize(
        ("spec", "cidrs", "refused"),
        [
            ({}, (), []),
            ({"podCIDR": "10.244.1.0/24"}, ("10.244.1.0/24",), []),
            ({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}, ("10.244.1.0/24", "fd00:1::/64"), []),
            ({"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.1.0/24"]}, ("10.244.1.0/24",), []),
            ({"podCIDR": "10.244.1.0/24", "podCIDRs": []}, ("10.244.1.0/24",), []),
            ({"podCIDR": "10.244.1.0"}, (), ["spec.podCIDR"]),
            ({"podCIDRs": ["x", "fd00:1::/64"]}, ("fd00:1::/64",), ["spec.podCIDRs[0]"]),
        ],
    )  # fmt: skip
    def test_pod_cidrs(self, spec, cidrs, refused):
        found, complaints = self.node(spec)
        assert found == NodeRow("n1", pod_cidrs=cidrs)
        assert list(complaints) == refused

    @pytest.mark.parametrize(
        ("spec", "metadata", "leaving"),
        [
            ({}, {}, False),
            ({"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}, {}, False),
            ({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}, {}, True),
            (
                {"taints": [{"key": "x"}, {"key": "ToBeDeletedByClusterAutoscaler", "value": "1700000000"}]},
                {},
                True,
            ),
            ({"unschedulable": True}, {}, False),
            ({}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}, True),
        ],
    )
    def test_leaving(self, spec, metadata, leaving):
        assert self.node(spec, **metadata)[0] == NodeRow("n1", leaving=leaving)

    def test_zone_and_uid(self):
        labels = {"topology.kubernetes.io/zone": "a", "failure-domain.beta.kubernetes.io/zone": "b"}
        assert self.node(labels=labels, uid="7")[0] == NodeRow("n1", "7", zone="a")


def test_service_cidr():
    found, complaints = flat(
        "ServiceCIDR",
        {"metadata": {"name": "a"}, "spec": {"cidrs": ["10.96.0.1/16", "x", "FD00::/108", "10.96.0.0/16"]}},
    )
    assert found == ("10.96.0.0/16", "fd00::/108")
    assert list(complaints) == ["spec.cidrs[1]"]


@pytest.mark.parametrize("spec", [None, {}, {"cidrs": None}, {"cidrs": []}])
def test_an_empty_service_cidr(spec):
    assert flat("ServiceCIDR", {"metadata": {"name": "a"}, "spec": spec}) == ((), {})
