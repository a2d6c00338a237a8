"""Removes what kernelspace mode left, in this program or the reference: load balancers, then endpoints.

Ours is what a full sync would count as ours (`view.HnsView.is_ours`): so load balancers that name an endpoint
of another network stay, and endpoints that network plug-ins made.
"""

import logging
from collections.abc import Collection

from kubeproxy.api.addresses import unpack
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.backends.kernelspace import prepare
from kubeproxy.backends.kernelspace.names import key_of
from kubeproxy.backends.kernelspace.view import HnsView, NetworkMissingError
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import HNSSettings
from kubeproxy.windows.errors import HcnError
from kubeproxy.windows.hcn import Hcn
from kubeproxy.windows.values import same_mac

log = logging.getLogger(__name__)


def cleanup(machine: Machine, settings: HNSSettings) -> None:
    """Cleans up; a second time finds nothing to do.

    Raises:
        SyncError: something was refused; all else is removed.
    """
    try:
        prepare.check_network_name(settings)
        view = prepare.view_of(machine)
        macs = {same_mac(machine.mac(unpack(address.packed))) for address in machine.addresses()} - {""}
        with view.lock:
            view.find_network(settings.network)
            view.look()
            troubles = _clean(view, macs)
    except NetworkMissingError:
        log.info(
            "HNS has no network %(network)s: only load balancers without endpoints can be of kernelspace mode",
            {"network": settings.network},
        )
        troubles = _clean_without_network(prepare.view_of(machine).hcn)
    except UnsupportedError as e:
        raise SyncError(str(e)) from e
    except HcnError as e:
        raise SyncError(f"HNS cannot be read: {e}") from e
    if troubles:
        raise SyncError("; ".join(troubles))


def _clean_without_network(hcn: Hcn) -> list[str]:
    """Deletes the load balancers whose endpoints do not exist any more; HNS may have kept them."""
    troubles: list[str] = []
    try:
        for ident in sorted(hcn.load_balancer_ids()):
            found = hcn.load_balancer(ident)
            if found is not None and key_of(found) and not any(map(hcn.endpoint, found.endpoints)):
                hcn.delete_load_balancer(ident)
    except HcnError as e:
        troubles.append(f"load balancers without endpoints: {e}")
    return troubles


def _clean(view: HnsView, macs: Collection[str]) -> list[str]:
    troubles: list[str] = []
    balancers = 0
    for balancer in list(view.balancers()):
        if view.is_ours(balancer):
            try:
                view.delete_balancer(balancer)
                balancers += 1
            except HcnError as e:
                troubles.append(f"load balancer {balancer.id}: {e}")
    endpoints = 0
    for endpoint in list(view.endpoints()):
        ours = any(view.is_own_endpoint(endpoint, mac) for mac in ("", *macs))
        if ours and not view.is_used(endpoint.id):
            try:
                view.delete_endpoint(endpoint)
                endpoints += 1
            except HcnError as e:
                troubles.append(f"endpoint {', '.join(endpoint.addresses)}: {e}")
    log.info(
        "Removed %(count)d load balancers and %(endpoints)d endpoints of kernelspace mode",
        {"count": balancers, "endpoints": endpoints},
    )
    return troubles
