"""Which version of HNS has which feature.

Microsoft backports features, so a feature is a set of ranges of versions.

Source: hnslib, hcn/hcnglobals.go and hcnsupport.go.
"""

from enum import Enum
from typing import Final

from kubeproxy.windows.values import HnsVersion


class Feature(Enum):
    """A feature of HNS; the value is its name for an operator."""

    V2 = "the HCN API, version 2"
    REMOTE_SUBNET = "overlay networks with remote subnets"
    DSR = "direct server return (DSR)"
    DUAL_STACK = "IPv6 dual stack"
    SESSION_AFFINITY = "session affinity"
    MODIFY_LOAD_BALANCER = "changing load balancers in place"


_LAST: Final = 1 << 31


def _within(major: int, first: int) -> tuple[HnsVersion, HnsVersion]:
    return HnsVersion(major, first), HnsVersion(major, _LAST)


def _since(major: int, minor: int) -> tuple[HnsVersion, HnsVersion]:
    return HnsVersion(major, minor), HnsVersion(_LAST, _LAST)


RANGES: Final = {
    Feature.V2: (_since(9, 2),),
    Feature.REMOTE_SUBNET: (_since(9, 2),),
    Feature.DSR: (_within(9, 3), _since(10, 2)),
    Feature.DUAL_STACK: (_since(11, 10),),
    Feature.SESSION_AFFINITY: (_since(12, 0),),
    Feature.MODIFY_LOAD_BALANCER: (_within(15, 5), _since(16, 0)),
}
"""The first and the last version of each range."""


def supports(version: HnsVersion, feature: Feature) -> bool:
    """Whether HNS of this version has a feature, as far as its version decides."""
    return any(first <= version <= last for first, last in RANGES[feature])


def features(version: HnsVersion) -> frozenset[Feature]:
    """The features of a version."""
    return frozenset(feature for feature in Feature if supports(version, feature))
