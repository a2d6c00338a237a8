"""What a driver needs of HNS: `Hcn`, a dozen calls on values, and its implementation over the HCN API.

It keeps no state but the version. What HNS has is listed by ids, which is one call, and read one by one.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from kubeproxy.windows import documents
from kubeproxy.windows.calls import Calls, Entity, HnsNotice
from kubeproxy.windows.errors import BAD_DOCUMENT, HcnError, HcnTrouble
from kubeproxy.windows.features import Feature, supports
from kubeproxy.windows.timed import CallInProgress, TimedCalls
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, HcnNetwork, HnsVersion

_log = logging.getLogger(__name__)

_NETWORK: Final = Entity.NETWORK
_ENDPOINT: Final = Entity.ENDPOINT
_LOAD_BALANCER: Final = Entity.LOAD_BALANCER


class Hcn(Protocol):
    """The Host Networking Service of this host.

    Every method but `supports` blocks until HNS answers, which may take seconds: call it in a thread, one
    call at a time. All of them raise `HcnError`; its `trouble` says what it means. Nothing is retried here.

    Attributes:
        version: the version of HNS.
    """

    @property
    def version(self) -> HnsVersion:
        """See above."""

    @property
    def in_progress(self) -> CallInProgress | None:
        """The call that HNS has not answered yet."""

    def supports(self, feature: Feature) -> bool:
        """Whether HNS has a feature, as far as its version decides."""

    def network(self, name: str) -> HcnNetwork | None:
        """The network with a name, compared without case; None if there is none."""

    def endpoint_ids(self, network: str) -> frozenset[str]:
        """The ids of all endpoints of a network, local and remote ones."""

    def endpoint(self, ident: str) -> HcnEndpoint | None:
        """An endpoint; None if there is none with this id.

        One that cannot be read has no network: it is of no network that is used here.
        """

    def endpoint_named(self, name: str) -> HcnEndpoint | None:
        """The endpoint with a name; None if there is none."""

    def create_endpoint(self, endpoint: HcnEndpoint) -> str:
        """Creates an endpoint; returns its id.

        Args:
            endpoint: with an id, HNS is asked to use it, and one call is saved; otherwise HNS chooses one.
        """

    def delete_endpoint(self, ident: str) -> None:
        """Deletes an endpoint; none with this id is no error."""

    def load_balancer_ids(self) -> frozenset[str]:
        """The ids of all load balancers of the host, also of those of other programs."""

    def load_balancer(self, ident: str) -> HcnLoadBalancer | None:
        """A load balancer; None if there is none with this id.

        One that cannot be read has no port mappings and no endpoints, like some of other programs.
        """

    def create_load_balancer(self, balancer: HcnLoadBalancer) -> HcnLoadBalancer:
        """Creates a load balancer; returns it as HNS does, with its id.

        Args:
            balancer: about its id see `create_endpoint`; with one it is returned as it is given.
        """

    def modify_load_balancer(self, balancer: HcnLoadBalancer) -> None:
        """Replaces the settings of the load balancer with this id.

        HNS is known to do this for `endpoints` and `source_vip`. Some versions report success and change
        nothing, so the caller must read it again.
        """

    def delete_load_balancer(self, ident: str) -> None:
        """Deletes a load balancer; none with this id is no error."""

    def watch(self, notified: Callable[[HnsNotice], None]) -> None:
        """Starts notifications; called again, they are registered again, as is needed after HNS restarted.

        Args:
            notified: called in a thread of the system; it must return at once and must not call HNS.
        """

    def close(self) -> None:
        """Ends notifications. What is in HNS stays."""


class HostNetworking:
    """See `Hcn`."""

    def __init__(self, calls: Calls) -> None:
        """Asks HNS for its version.

        Raises:
            HcnError: HNS does not answer.
        """
        self._timed = TimedCalls(calls)
        self._calls = calls = self._timed.calls
        self._registration = 0
        with _readable("HNSCall"):
            self.version = documents.read_version(calls.version())

    @property
    def in_progress(self) -> CallInProgress | None:
        """See `Hcn`."""
        return self._timed.in_progress

    def supports(self, feature: Feature) -> bool:
        """See `Hcn`."""
        return supports(self.version, feature)

    def network(self, name: str) -> HcnNetwork | None:
        """See `Hcn`. The filter of HNS may compare case: if it finds nothing, all networks are read."""
        for filters in ({"Name": name}, None):
            for ident in sorted(self._ids(_NETWORK, filters)):
                text = self._text(_NETWORK, ident)
                if text is None:
                    continue
                try:
                    network = documents.read_network(text)
                except documents.DocumentError as e:
                    if filters:
                        raise HcnError(_query(_NETWORK), BAD_DOCUMENT, str(e)) from None
                    _unreadable(_NETWORK, ident, e)
                    continue
                if network.name.lower() == name.lower():
                    return network
        return None

    def endpoint_ids(self, network: str) -> frozenset[str]:
        """See `Hcn`."""
        return self._ids(_ENDPOINT, {"VirtualNetwork": network})

    def endpoint(self, ident: str) -> HcnEndpoint | None:
        """See `Hcn`."""
        text = self._text(_ENDPOINT, ident)
        if text is None:
            return None
        try:
            return documents.read_endpoint(text)
        except documents.DocumentError as e:
            _unreadable(_ENDPOINT, ident, e)
            return HcnEndpoint(network="", addresses=(), id=ident)

    def endpoint_named(self, name: str) -> HcnEndpoint | None:
        """See `Hcn`."""
        for ident in sorted(self._ids(_ENDPOINT, {"Name": name})):
            found = self.endpoint(ident)
            if found is not None and found.name.lower() == name.lower():
                return found
        return None

    def create_endpoint(self, endpoint: HcnEndpoint) -> str:
        """See `Hcn`."""
        network = self._calls.open(_NETWORK, endpoint.network)
        try:
            settings = documents.endpoint_settings(endpoint)
            handle = self._calls.create_endpoint(network, endpoint.id, settings)
        finally:
            self._calls.close(_NETWORK, network)
        text = self._created(_ENDPOINT, handle, endpoint.id)
        with _readable(_query(_ENDPOINT)):
            return documents.read_id(text) if text else endpoint.id

    def delete_endpoint(self, ident: str) -> None:
        """See `Hcn`."""
        self._delete(_ENDPOINT, ident)

    def load_balancer_ids(self) -> frozenset[str]:
        """See `Hcn`."""
        return self._ids(_LOAD_BALANCER)

    def load_balancer(self, ident: str) -> HcnLoadBalancer | None:
        """See `Hcn`."""
        text = self._text(_LOAD_BALANCER, ident)
        if text is None:
            return None
        try:
            return documents.read_load_balancer(text)
        except documents.DocumentError as e:
            _unreadable(_LOAD_BALANCER, ident, e)
            return HcnLoadBalancer(endpoints=(), id=ident)

    def create_load_balancer(self, balancer: HcnLoadBalancer) -> HcnLoadBalancer:
        """See `Hcn`."""
        settings = documents.load_balancer_settings(balancer)
        handle = self._calls.create_load_balancer(balancer.id, settings)
        text = self._created(_LOAD_BALANCER, handle, balancer.id)
        if not text:
            return balancer
        try:
            return documents.read_load_balancer(text)
        except documents.DocumentError as e:
            with _readable(_query(_LOAD_BALANCER)):
                ident = documents.read_id(text)
            _unreadable(_LOAD_BALANCER, ident, e)
            return HcnLoadBalancer(endpoints=(), id=ident)

    def modify_load_balancer(self, balancer: HcnLoadBalancer) -> None:
        """See `Hcn`."""
        with self._opened(_LOAD_BALANCER, balancer.id) as handle:
            self._calls.modify_load_balancer(handle, documents.load_balancer_settings(balancer))

    def delete_load_balancer(self, ident: str) -> None:
        """See `Hcn`."""
        self._delete(_LOAD_BALANCER, ident)

    def watch(self, notified: Callable[[HnsNotice], None]) -> None:
        """See `Hcn`."""
        self.close()
        self._registration = self._calls.register(notified)

    def close(self) -> None:
        """See `Hcn`."""
        registration, self._registration = self._registration, 0
        if registration:
            with contextlib.suppress(HcnError):  # the registration ends with the HNS that it was made with
                self._calls.unregister(registration)

    def _ids(self, entity: Entity, filters: Mapping[str, str] | None = None) -> frozenset[str]:
        with _readable(f"HcnEnumerate{entity.plural}"):
            return documents.read_ids(self._calls.enumerate(entity, documents.query(filters)))

    def _text(self, entity: Entity, ident: str) -> str | None:
        """An object's document; None if there is no object with this id."""
        try:
            with self._opened(entity, ident) as handle:
                return self._calls.query(entity, handle, documents.query())
        except HcnError as e:
            if e.trouble is HcnTrouble.NOT_FOUND:
                return None
            raise

    def _created(self, entity: Entity, handle: int, ident: str) -> str:
        """Closes the handle of a new object; returns its document, "" if its id was given.

        An object whose id cannot be read exists all the same: the caller finds it when it lists.
        """
        try:
            return "" if ident else self._calls.query(entity, handle, documents.query())
        finally:
            self._calls.close(entity, handle)

    def _delete(self, entity: Entity, ident: str) -> None:
        try:
            self._calls.delete(entity, ident)
        except HcnError as e:
            if e.trouble is not HcnTrouble.NOT_FOUND:
                raise

    @contextlib.contextmanager
    def _opened(self, entity: Entity, ident: str) -> Iterator[int]:
        handle = self._calls.open(entity, ident)
        try:
            yield handle
        finally:
            self._calls.close(entity, handle)


def _query(entity: Entity) -> str:
    """The function that returns the document of an object."""
    return f"HcnQuery{entity.value}Properties"


@contextlib.contextmanager
def _readable(call: str) -> Iterator[None]:
    try:
        yield
    except documents.DocumentError as e:
        raise HcnError(call, BAD_DOCUMENT, str(e)) from None


def _unreadable(entity: Entity, ident: str, error: Exception) -> None:
    _log.warning(
        "HNS returns %s %s in a form that cannot be read; it is ignored: %s", entity.value, ident, error
    )
