"""The hashes in chain names: other programs compute the same ones."""

from base64 import b32encode
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends.iptables import names


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("ns1/svc1:p80" + "tcp", "XPGD46QRK7WJZT7O"),
        ("ns1/svc1:p80" + "tcp" + "10.180.0.1:80", "SXIVWICOYRO3J4NJ"),
        ("default/kubernetes:https" + "tcp", "NPX46M4PTMTKRN6Y"),
        ("kube-system/kube-dns:dns" + "udp", "TCOU7JCQXEZGVUNU"),
    ],
)
def test_suffixes_known_from_real_clusters(text: str, suffix: str) -> None:
    assert names.suffix(text) == suffix


@given(st.text())
def test_a_suffix_is_the_start_of_base32_of_sha256(text: str) -> None:
    assert names.suffix(text) == b32encode(sha256(text.encode()).digest()).decode()[:16]


def test_which_chains_are_owned() -> None:
    owned = ["KUBE-SVC-X", "KUBE-SVL-X", "KUBE-SEP-X", "KUBE-EXT-X", "KUBE-FW-X", "KUBE-XLB-X"]
    others = [
        *(names.SERVICES, names.NODE_PORTS, names.MARK_MASQ, names.FORWARD, names.PROXY_FIREWALL),
        *(
            "KUBE-MARK-DROP",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "KUBE-FIREWALL",
            "CNI-HOSTPORT-DNAT",
        ),
        *("KUBE-FWD", "KUBE-SEPARATE", "INPUT", "XKUBE-SVC-X"),
    ]
    assert [c for c in [*owned, *others] if names.is_owned(c)] == owned


def test_chain_names_fit_the_kernel() -> None:
    """28 characters at most: XT_EXTENSION_MAXNAMELEN and the zero byte."""
    assert max(len(prefix) for prefix in names.OWNED_PREFIXES) + 16 <= 28
