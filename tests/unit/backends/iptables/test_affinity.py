"""The limit of clients with session affinity is said once, with the Service."""

import logging

import pytest

from kubeproxy.machine.fake import FakeMachine
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.iptables.rig import Rig


def test_it_is_said_once_and_only_where_a_service_has_affinity(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rig = Rig()
    rig.tell(service("plain", "10.96.0.1"), endpoints("plain", "10.244.1.1"))
    assert not rig.full()
    assert not caplog.messages
    for name in "one", "two":
        rig.tell(service(name, f"10.96.0.{ord(name[0])}", session_affinity="ClientIP"))
        rig.partial()
    (said,) = caplog.messages
    assert "Service default/one has session affinity" in said


@pytest.mark.parametrize(("text", "limit"), [("250", "last 250 clients"), (None, "last 100 clients")])
def test_the_limit_is_the_module_s(caplog: pytest.LogCaptureFixture, text: str | None, limit: str) -> None:
    rig = Rig()
    if text is not None:
        machine = rig.tables.machine
        assert isinstance(machine, FakeMachine)
        machine.modules["xt_recent", "ip_list_tot"] = text
    rig.tell(service("one", "10.96.0.1", session_affinity="ClientIP"))
    assert not rig.full()
    assert limit in caplog.text
