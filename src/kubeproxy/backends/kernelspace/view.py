"""What HNS has, as it was read and as this program has changed it since.

HNS reports next to nothing about changes, and reading one object takes three calls. Ids are never used again,
though, so a list of ids, one call, shows what came and went, and only what is new is read. What others change
inside of a load balancer is not visible in ids; so a few are read again at each look.

One view serves the drivers of both IP families. Each subscribes to what other programs change. What belongs
to a family that no driver serves, such as one of an earlier configuration, is left to the other one.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import AwaitedError
from kubeproxy.backends.kernelspace.forms import BalancerForms
from kubeproxy.backends.kernelspace.names import MAC_PREFIX, BalancerKey
from kubeproxy.clock import Clock
from kubeproxy.windows.errors import HcnError, HcnTrouble
from kubeproxy.windows.features import Feature
from kubeproxy.windows.hcn import Hcn
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, HcnNetwork

log = logging.getLogger(__name__)

RECENT_SECONDS: Final = 5.0
"""A list of ids that is not older serves the other IP family, too."""

ROUNDS: Final = 120
"""In so many looks every load balancer is read again."""


class HnsNews(Struct, frozen=True, gc=False):
    """What another program changed: an endpoint or a load balancer as it was, and as it is now.

    None: it was not there, or it is gone.
    """

    before: HcnEndpoint | HcnLoadBalancer | None
    after: HcnEndpoint | HcnLoadBalancer | None


class NetworkMissingError(AwaitedError):
    """HNS has no network with the configured name."""


class HnsView:
    """See the module. Its methods raise `HcnError`, and must be called with `lock` held.

    Attributes:
        hcn: HNS.
        clock: the time.
        lock: one user at a time; HNS is slow, so calls are made in threads.
        network: the network, as it was last read.
        modifies: whether load balancers are changed in place: no; untried: they must be read afterwards; yes.
        forms: in which forms HNS returns load balancers.
        adopted: endpoints on other nodes that another program made and this one has used.
        served: the drivers of each IP family.
        watch: the notifications of HNS, if they were requested.
    """

    def __init__(self, hcn: Hcn, clock: Clock) -> None:
        """Nothing is read yet."""
        self.hcn = hcn
        self.lock = threading.RLock()
        self.network: HcnNetwork | None = None
        self.modifies: Literal["no", "untried", "yes"] = (
            "untried" if hcn.supports(Feature.MODIFY_LOAD_BALANCER) else "no"
        )
        self.forms = BalancerForms()
        self.adopted: set[str] = set()
        self.served: Counter[Family] = Counter()
        self.watch: object = None
        self.clock = clock
        self._looked = float("-inf")
        self._endpoints: dict[str, HcnEndpoint] = {}
        self._at: dict[str, dict[str, None]] = {}
        self._balancers: dict[str, HcnLoadBalancer] = {}
        self._by_key: dict[BalancerKey, dict[str, None]] = {}
        self._uses: Counter[str] = Counter()
        self._elsewhere: set[str] = set()
        self._gone: set[str] = set()
        self._listeners: list[Callable[[HnsNews], None]] = []
        self._round: list[str] = []

    def subscribe(self, listener: Callable[[HnsNews], None]) -> Callable[[], None]:
        """Calls back with what other programs changed, when it is seen; returns what ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # Looking

    def find_network(self, name: str) -> HcnNetwork:
        """Looks up the network. If it is another one than before, all endpoints are read again.

        Raises:
            NetworkMissingError: there is none.
        """
        found = self.hcn.network(name)
        if found is None:
            raise NetworkMissingError(
                f"HNS has no network {name!r}: waiting for the network plug-in to create it; --network-name names"
                " another one"
            )
        if self.network is not None and found.id != self.network.id:
            log.warning(
                "HNS network %(network)s was created again: its endpoints are read again", {"network": name}
            )
            for ident in list(self._endpoints):
                self._drop_endpoint(ident)
            self._elsewhere.clear()
            self._gone.clear()
        self.network = found
        return found

    def look(self, *, oldest: float = 0.0) -> None:
        """Lists ids, and reads what is new.

        Args:
            oldest: seconds; a list that is not older is enough.
        """
        if self.clock.now() - self._looked < oldest:
            return
        self.look_at_endpoints()
        listed = self.hcn.load_balancer_ids()
        for ident in self._balancers.keys() - listed:
            self._announce(self._drop_balancer(ident), None)
        for ident in sorted(listed - self._balancers.keys()):
            found = self.hcn.load_balancer(ident)
            if found is not None:
                self._keep_balancer(found)
                self._announce(None, found)
        # What is not on the network matters as long as a load balancer names it.
        self._gone &= self._uses.keys()
        self._elsewhere &= self._uses.keys()
        self._looked = self.clock.now()

    def look_at_endpoints(self) -> None:
        """Lists the ids of the network's endpoints, and reads what is new."""
        assert self.network is not None
        listed = self.hcn.endpoint_ids(self.network.id)
        for ident in self._endpoints.keys() - listed:
            gone = self._drop_endpoint(ident)
            self._gone.add(ident)
            self._announce(gone, None)
        for ident in sorted(listed - self._endpoints.keys()):
            found = self.hcn.endpoint(ident)
            if found is not None:
                self._keep_endpoint(found)
                self._announce(None, found)

    def doubt(self) -> None:
        """What is known may be out of date: the next look lists again."""
        self._looked = float("-inf")

    def read_again(self, rounds: int = ROUNDS) -> None:
        """Reads some load balancers again, so that all are read in so many calls of this."""
        if not self._round:
            self._round = sorted(self._balancers, reverse=True)
        for _ in range(-(-len(self._balancers) // rounds)):
            if not self._round:
                return
            ident = self._round.pop()
            before = self._balancers.get(ident)
            if before is None:
                continue
            after = self.hcn.load_balancer(ident)
            if after is not None and (asked := self.forms.first_read(before, after)) is not None:
                self._drop_balancer(ident)
                self._keep_balancer(after, asked)
            elif after != before:
                self._drop_balancer(ident)
                if after is not None:
                    self._keep_balancer(after)
                self._announce(before, after)

    # What is there

    def endpoints(self) -> Iterable[HcnEndpoint]:
        """The endpoints of the network."""
        return self._endpoints.values()

    def endpoint(self, ident: str) -> HcnEndpoint | None:
        """An endpoint of the network."""
        return self._endpoints.get(ident)

    def endpoints_at(self, address: str) -> list[HcnEndpoint]:
        """The endpoints with an address; those on this host first, then those that are used."""
        found = [self._endpoints[ident] for ident in self._at.get(address, ())]
        return sorted(found, key=lambda each: (each.remote, not self._uses[each.id], each.id))

    def is_used(self, ident: str) -> bool:
        """Whether a load balancer names an endpoint."""
        return self._uses[ident] > 0

    def users(self, ident: str) -> Iterator[HcnLoadBalancer]:
        """The load balancers that name an endpoint."""
        return (each for each in self._balancers.values() if ident in each.endpoints)

    def balancer(self, ident: str) -> HcnLoadBalancer | None:
        """A load balancer."""
        return self._balancers.get(ident)

    def key(self, balancer: HcnLoadBalancer) -> BalancerKey | None:
        """The key of a load balancer; None if this program makes none like it."""
        return self.forms.key(balancer)

    def balancers(self) -> Iterable[HcnLoadBalancer]:
        """All load balancers of the host."""
        return self._balancers.values()

    def balancers_with(self, key: BalancerKey) -> list[HcnLoadBalancer]:
        """The load balancers with a key, also those of others."""
        return [self._balancers[ident] for ident in sorted(self._by_key.get(key, ()))]

    def is_ours(self, balancer: HcnLoadBalancer) -> bool:
        """Whether this program, or another kube-proxy on this network, made a load balancer.

        That is so if it has one port and at most one address, and every endpoint it names is on the network
        or does not exist any more. The endpoint of the host may be on another one; then only what this
        process made is its own.
        """
        if self.forms.made(balancer.id):
            return True
        return self.key(balancer) is not None and all(map(self._is_here, balancer.endpoints))

    def _is_here(self, ident: str) -> bool:
        if ident in self._endpoints or ident in self._gone:
            return True
        if ident in self._elsewhere:
            return False
        found = self.hcn.endpoint(ident)
        if found is None:
            self._gone.add(ident)
            return True
        assert self.network is not None
        if found.network == self.network.id:
            self._keep_endpoint(found)
            return True
        self._elsewhere.add(ident)
        return False

    def is_own_endpoint(self, endpoint: HcnEndpoint, host_mac: str) -> bool:
        """Whether this program made an endpoint, or has used it.

        Args:
            endpoint: the endpoint.
            host_mac: the MAC address of the host, which endpoints of ClusterIPs have; "" if there are none.
        """
        if not endpoint.remote:
            return False
        mac = endpoint.mac
        return mac.startswith(MAC_PREFIX) or (bool(mac) and mac == host_mac) or endpoint.id in self.adopted

    # Changes by this program

    def create_endpoint(self, endpoint: HcnEndpoint) -> HcnEndpoint:
        """Creates an endpoint; returns it with its id."""
        with self._doubtful_without_answer():
            made = replace(endpoint, id=self.hcn.create_endpoint(endpoint))
        self._keep_endpoint(made)
        return made

    def delete_endpoint(self, endpoint: HcnEndpoint) -> None:
        """Deletes an endpoint."""
        with self._doubtful_without_answer():
            self.hcn.delete_endpoint(endpoint.id)
        self._drop_endpoint(endpoint.id)
        self._gone.add(endpoint.id)

    def create_balancer(self, balancer: HcnLoadBalancer) -> HcnLoadBalancer:
        """Creates a load balancer; returns it as HNS does."""
        with self._doubtful_without_answer():
            made = self.hcn.create_load_balancer(balancer)
        self._keep_balancer(made, balancer)
        return made

    def delete_balancer(self, balancer: HcnLoadBalancer) -> None:
        """Deletes a load balancer. HNS sometimes fails once, so it is tried twice."""
        with self._doubtful_without_answer():
            try:
                self.hcn.delete_load_balancer(balancer.id)
            except HcnError as e:
                if e.trouble is HcnTrouble.AWAY:
                    raise
                self.hcn.delete_load_balancer(balancer.id)
        self._drop_balancer(balancer.id)

    def modify_balancer(self, balancer: HcnLoadBalancer) -> bool:
        """Gives a load balancer other endpoints; returns whether HNS did it.

        Some versions of HNS report success and do nothing. So the load balancer is read afterwards, until HNS
        has done it once.
        """
        before = self._balancers[balancer.id]
        was = self.forms.as_asked(before, balancer)
        with self._doubtful_without_answer():
            self.hcn.modify_load_balancer(balancer)
            got = balancer if self.modifies == "yes" else self.hcn.load_balancer(balancer.id)
        self._drop_balancer(balancer.id)
        if got is None:
            return False
        if self.modifies == "yes":
            self.forms.unread(balancer)
            self._keep_balancer(balancer)
            return True
        # The source address may be returned in another form; but if it was to change, it must have changed.
        moved = got.source_vip != before.source_vip or was.source_vip == balancer.source_vip
        if got.endpoints != balancer.endpoints or not moved:
            self._keep_balancer(got)
            return False
        self._keep_balancer(got, balancer)
        self.modifies = "yes"
        return True

    def stop_modifying(self, why: str) -> None:
        """From now on load balancers are replaced, not changed in place."""
        if self.modifies != "no":
            self.modifies = "no"
            log.warning(
                "HNS cannot change load balancers in place, so they are deleted and created again: %(reason)s",
                {"reason": why},
            )

    def _doubtful_without_answer(self) -> "_Doubtful":
        return _Doubtful(self)

    # Keeping

    def _keep_endpoint(self, endpoint: HcnEndpoint) -> None:
        assert self.network is not None
        if endpoint.network != self.network.id:
            self._elsewhere.add(endpoint.id)
            return
        self._endpoints[endpoint.id] = endpoint
        self._gone.discard(endpoint.id)
        for address in endpoint.addresses:
            self._at.setdefault(address, {})[endpoint.id] = None

    def _drop_endpoint(self, ident: str) -> HcnEndpoint:
        endpoint = self._endpoints.pop(ident)
        self.adopted.discard(ident)
        for address in endpoint.addresses:
            del self._at[address][ident]
            if not self._at[address]:
                del self._at[address]
        return endpoint

    def _keep_balancer(self, balancer: HcnLoadBalancer, asked: HcnLoadBalancer | None = None) -> None:
        if asked is not None:
            self.forms.answered(asked, balancer)
        self._balancers[balancer.id] = balancer
        self._uses.update(balancer.endpoints)
        key = self.key(balancer)
        if key is not None:
            self._by_key.setdefault(key, {})[balancer.id] = None

    def _drop_balancer(self, ident: str) -> HcnLoadBalancer:
        balancer = self._balancers.pop(ident)
        for endpoint in balancer.endpoints:
            self._uses[endpoint] -= 1
            if not self._uses[endpoint]:
                del self._uses[endpoint]
        key = self.key(balancer)
        if key is not None:
            del self._by_key[key][ident]
            if not self._by_key[key]:
                del self._by_key[key]
        self.forms.forget(ident)
        return balancer

    def _announce(
        self, before: HcnEndpoint | HcnLoadBalancer | None, after: HcnEndpoint | HcnLoadBalancer | None
    ) -> None:
        for listener in self._listeners:
            listener(HnsNews(before, after))


class _Doubtful:
    """If HNS fails to answer, a change may have been made all the same."""

    def __init__(self, view: HnsView) -> None:
        self._view = view

    def __enter__(self) -> None:
        """Nothing is in doubt yet."""

    def __exit__(self, _: object, error: object, __: object) -> None:
        if error is not None:
            self._view.doubt()
