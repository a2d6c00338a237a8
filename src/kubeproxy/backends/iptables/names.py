"""Names of tables and chains. They are a public contract: tools, kubelets and network plugins look for them.

Per-Service chains carry a hash: 16 characters of base32 over SHA-256 of the Service port's name, its protocol
in lower case and, for an endpoint's chain, its "address:port".
"""

from typing import Final

from kubeproxy.backends.shared.hashes import hash16

SERVICES: Final = "KUBE-SERVICES"
EXTERNAL_SERVICES: Final = "KUBE-EXTERNAL-SERVICES"
NODE_PORTS: Final = "KUBE-NODEPORTS"
POSTROUTING: Final = "KUBE-POSTROUTING"
MARK_MASQ: Final = "KUBE-MARK-MASQ"
FORWARD: Final = "KUBE-FORWARD"
PROXY_FIREWALL: Final = "KUBE-PROXY-FIREWALL"
KUBELET_FIREWALL: Final = "KUBE-FIREWALL"
CANARY: Final = "KUBE-PROXY-CANARY"

STATIC: Final = frozenset(
    {SERVICES, EXTERNAL_SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ, FORWARD, PROXY_FIREWALL, CANARY}
)
"""The chains that are ours and belong to no Service."""

OWNED_PREFIXES: Final = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-")
"""Chains that belong to Services; KUBE-XLB- is what very old releases of the reference called KUBE-EXT-."""

INVALID_COUNTER: Final = "ct_state_invalid_dropped_pkts"
LOCALHOST_COUNTER: Final = "localhost_nps_accepted_pkts"

suffix = hash16
"""The hash of a chain's name."""


def is_owned(chain: str) -> bool:
    """Whether a chain belongs to some Service."""
    return chain.startswith(OWNED_PREFIXES)
