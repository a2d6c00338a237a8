"""Codes of HNS: what they mean and what to do about them. And which version has which feature."""

import pytest

from kubeproxy.windows import errors
from kubeproxy.windows.errors import CODES, HcnError, HcnTrouble, check
from kubeproxy.windows.features import Feature, features, supports
from kubeproxy.windows.values import HnsVersion


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        (0x80070490, HcnTrouble.NOT_FOUND),
        (0x803B0001, HcnTrouble.NOT_FOUND),
        (0x803B0002, HcnTrouble.NOT_FOUND),
        (0x803B0013, HcnTrouble.EXISTS),
        (0x800700B7, HcnTrouble.EXISTS),
        (0x803B0015, HcnTrouble.UNSUPPORTED),
        (0x80004001, HcnTrouble.UNSUPPORTED),
        (0x803B0017, HcnTrouble.DAMAGED),
        (0x80070005, HcnTrouble.DENIED),
        (0x80070006, HcnTrouble.AWAY),
        (0x803B0020, HcnTrouble.AWAY),
        (0x803B0031, HcnTrouble.AWAY),
        (0x800706BA, HcnTrouble.AWAY),
        (0x80070000 + 1700, HcnTrouble.AWAY),
        (0x80070000 + 1799, HcnTrouble.AWAY),
        (0x80070000 + 1800, HcnTrouble.REFUSED),
        (0x80070000 + 1699, HcnTrouble.REFUSED),
        (0x803B0007, HcnTrouble.REFUSED),
        (0x803B1234, HcnTrouble.REFUSED),
        (0x887A0005, HcnTrouble.REFUSED),
    ],
)
def test_what_a_code_means(code: int, trouble: HcnTrouble) -> None:
    assert HcnError("HcnOpenEndpoint", code).trouble is trouble
    assert HcnError("HcnOpenEndpoint", code - (1 << 32)).trouble is trouble  # as ctypes returns it


def test_a_message_names_the_call_the_code_the_text_and_the_remedy() -> None:
    error = HcnError("HcnCreateLoadBalancer", -2143617005, "The specified port already exists.")
    message = str(error)
    assert message.startswith(
        "HcnCreateLoadBalancer: HCN_E_PORT_ALREADY_EXISTS 0x803b0013: The specified port"
    )
    assert "Get-HnsPolicyList" in message
    assert error.advice in message
    assert (
        str(HcnError("HcnDeleteEndpoint", 0x803BFFFF))
        == "HcnDeleteEndpoint: HRESULT 0x803bffff 0x803bffff; it is retried"
    )
    assert "Win32 error 1722" not in str(HcnError("HNSCall", 0x800706BA))
    assert "Win32 error 1450" in str(HcnError("HNSCall", 0x800705AA))


def test_every_code_has_a_remedy() -> None:
    assert all(code.advice and code.name for code in CODES.values())


def test_success() -> None:
    check("HcnOpenEndpoint", 0, "")
    check("HcnOpenEndpoint", 1, "")


def test_the_code_of_a_record_counts_where_the_hresult_is_success() -> None:
    with pytest.raises(HcnError) as caught:
        check("HcnOpenEndpoint", 0, '{"Success":false,"Error":"no","ErrorCode":2151350279}')
    assert (caught.value.code, caught.value.text) == (errors.PORT_NOT_FOUND, "no")
    with pytest.raises(HcnError) as caught:
        check("HcnOpenEndpoint", 0, "no")
    assert caught.value.code == errors.E_FAIL


def test_a_long_text_is_cut() -> None:
    with pytest.raises(HcnError) as caught:
        check("HcnOpenEndpoint", -1, "x " * 5000)
    assert len(caught.value.text) == 1000


@pytest.mark.parametrize(
    ("version", "feature", "has"),
    [
        ((9, 1), Feature.V2, False),
        ((9, 2), Feature.V2, True),
        ((9, 2), Feature.DSR, False),
        ((9, 3), Feature.DSR, True),
        ((9, 99), Feature.DSR, True),
        ((10, 1), Feature.DSR, False),
        ((10, 2), Feature.DSR, True),
        ((11, 9), Feature.DUAL_STACK, False),
        ((11, 10), Feature.DUAL_STACK, True),
        ((11, 99), Feature.SESSION_AFFINITY, False),
        ((12, 0), Feature.SESSION_AFFINITY, True),
        ((15, 4), Feature.MODIFY_LOAD_BALANCER, False),
        ((15, 5), Feature.MODIFY_LOAD_BALANCER, True),
        ((16, 0), Feature.MODIFY_LOAD_BALANCER, True),
    ],
)
def test_features_of_versions(version: tuple[int, int], feature: Feature, has: bool) -> None:
    assert supports(HnsVersion(*version), feature) is has


def test_all_features_of_a_version() -> None:
    assert features(HnsVersion(9, 1)) == frozenset()
    assert features(HnsVersion(9, 5)) == {Feature.V2, Feature.REMOTE_SUBNET, Feature.DSR}
    assert features(HnsVersion(17, 0)) == frozenset(Feature)
    assert str(HnsVersion(15, 5)) == "15.5"
