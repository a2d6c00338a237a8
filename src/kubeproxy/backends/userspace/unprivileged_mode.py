"""userspace mode without rules (--userspace-listen)."""

from typing import Final

from kubeproxy.backends.base import Driver
from kubeproxy.backends.mode import Mode
from kubeproxy.backends.userspace import mode as userspace
from kubeproxy.model.node import NodeConfig


def _open(node: NodeConfig) -> Driver:
    from functools import partial

    from kubeproxy.backends.userspace import here
    from kubeproxy.backends.userspace.listening import Listening
    from kubeproxy.relay.control import Relay

    return Listening(
        Relay(f"{node.family} relay", labels={"ip_family": node.family}), partial(here.addresses, node.family)
    )


MODE: Final = Mode(
    name=userspace.MODE.without_rules,
    tracked=False,
    forwards=False,
    lasting=False,
    node=userspace.MODE.node,
    open=_open,
)
