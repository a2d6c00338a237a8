"""Starts kernelspace mode: what must be there before the first load balancer.

A network that does not exist yet is no reason to fail: some network plug-ins create it with the first Pod.
The driver waits for it.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.backends.kernelspace.driver import KernelspaceDriver
from kubeproxy.backends.kernelspace.network import source_vip_trouble
from kubeproxy.backends.kernelspace.view import HnsView
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import HNSSettings, NodeConfig
from kubeproxy.windows.errors import HcnError, HcnTrouble, HnsMissingError
from kubeproxy.windows.features import Feature
from kubeproxy.windows.hcn import Hcn
from kubeproxy.windows.values import same_mac

log = logging.getLogger(__name__)

_CANNOT: Final = "kernelspace mode cannot run"


class SharedHns:
    """The view of HNS that the drivers of a machine share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view: HnsView | None = None

    def view(self, machine: Machine) -> HnsView:
        """The view.

        Raises:
            HnsMissingError: the host has no HNS.
            HcnError: it does not answer.
        """
        with self._lock:
            if self._view is None:
                self._view = HnsView(machine.hcn(), machine.clock)
            return self._view


def open_driver(machine: Machine, node: NodeConfig) -> KernelspaceDriver:
    """Makes the driver of a node's family.

    Raises:
        UnsupportedError: it cannot run here.
        SyncError: HNS does not answer.
    """
    settings = node.hns or HNSSettings()
    view = view_of(machine)
    _check_settings(settings, view.hcn, node)
    with view.lock:
        try:
            network = view.hcn.network(settings.network)
        except HcnError as e:
            raise _error(e) from e
    if network is None:
        log.info(
            "%(ipFamily)s: HNS has no network %(network)s yet; waiting for it",
            {"ipFamily": node.family, "network": settings.network},
        )
    elif network.overlay:
        check_overlay(settings, node, view.hcn)
    log.info(
        "%(ipFamily)s: kernelspace mode with HNS %(version)s, network %(network)s",
        {"ipFamily": node.family, "version": view.hcn.version, "network": settings.network},
    )
    driver = KernelspaceDriver(view, node, _mac_of(machine))
    driver.serve()
    return driver


def open_reader(machine: Machine, node: NodeConfig) -> KernelspaceDriver:
    """Makes a driver that is only to read.

    Raises:
        UnsupportedError: there is no HNS, or no network is configured.
        SyncError: HNS does not answer.
    """
    view = view_of(machine)
    check_network_name(node.hns or HNSSettings())
    return KernelspaceDriver(view, node, _mac_of(machine))


def view_of(machine: Machine) -> HnsView:
    """The view of HNS that all users of a machine share.

    Raises:
        UnsupportedError: there is no HNS that can be used.
        SyncError: it does not answer.
    """
    try:
        return machine.shared(SharedHns).view(machine)
    except HnsMissingError as e:
        raise UnsupportedError(f"{_CANNOT}: {e}") from e
    except HcnError as e:
        raise _error(e) from e


def _error(error: HcnError) -> Exception:
    if error.trouble is HcnTrouble.DENIED:
        return UnsupportedError(f"{_CANNOT}: {error}")
    return SyncError(f"HNS does not answer: {error}")


def check_network_name(settings: HNSSettings) -> None:
    """Checks that a network is named.

    Raises:
        UnsupportedError: none is.
    """
    if not settings.network:
        raise UnsupportedError(
            f"{_CANNOT}: no HNS network is named; set --network-name, winkernel.networkName, or KUBE_NETWORK in the"
            " environment"
        )


def _check_settings(settings: HNSSettings, hcn: Hcn, node: NodeConfig) -> None:
    check_network_name(settings)
    if not hcn.supports(Feature.V2):
        raise UnsupportedError(
            f"{_CANNOT}: HNS {hcn.version} is older than 9.2, it has no {Feature.V2.value}"
        )
    if settings.dsr and not hcn.supports(Feature.DSR):
        raise UnsupportedError(
            f"{_CANNOT}: HNS {hcn.version} does not support {Feature.DSR.value}: remove --enable-dsr, or update Windows"
        )
    if not node.primary and not hcn.supports(Feature.DUAL_STACK):
        raise UnsupportedError(
            f"HNS {hcn.version} does not support {Feature.DUAL_STACK.value}, which needs 11.10"
        )
    if settings.health_vips and hcn.version.major <= _FIRST_MAJOR and settings.healthz_everywhere:
        log.warning(
            "HNS %(version)s refuses load balancers for ports on which a program of the host listens at all addresses:"
            " with --forward-healthcheck-vip, set --healthz-bind-address to the node's address",
            {"version": hcn.version},
        )


_FIRST_MAJOR: Final = 9
"""HNS of Windows Server 2019."""


def check_overlay(settings: HNSSettings, node: NodeConfig, hcn: Hcn) -> None:
    """Checks what only overlay networks need.

    Raises:
        UnsupportedError: it is missing.
    """
    if not node.primary:
        raise UnsupportedError(
            f"HNS has no dual stack on overlay networks, which {settings.network} is: {node.family} is not served"
        )
    if not hcn.supports(Feature.REMOTE_SUBNET):
        raise UnsupportedError(f"{_CANNOT}: HNS {hcn.version} does not support {Feature.REMOTE_SUBNET.value}")
    if trouble := source_vip_trouble(settings):
        raise UnsupportedError(f"{_CANNOT}: {trouble}")


def _mac_of(machine: Machine) -> Callable[[str], str]:
    """What returns the MAC address of the interface that has an address, in the form of `windows.values`."""

    def mac(address: str) -> str:
        try:
            return same_mac(machine.mac(address))
        except OSError as e:
            raise SyncError(f"the MAC address of the interface with {address} cannot be read: {e}") from e

    return mac
