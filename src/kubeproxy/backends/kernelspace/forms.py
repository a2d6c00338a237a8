"""The forms in which HNS returns load balancers, which may differ from what it was asked for.

Flags may have more bits or fewer, fields may be missing, node ports may have addresses. So what HNS returns
right after this program created or changed a load balancer is the form of what was asked for, and only what
departs from that later is a change by another program.

What one load balancer shows about the forms of HNS helps to recognise those of an earlier process: but only
if the form is one that this program never asks for, because otherwise it may be what was asked for.
"""

import logging
from typing import Final, NamedTuple

from msgspec.structs import replace

from kubeproxy.backends.kernelspace.names import PRESERVE, BalancerKey, key_of
from kubeproxy.windows import values
from kubeproxy.windows.values import HcnLoadBalancer

log = logging.getLogger(__name__)

_PORT_FLAGS: Final = frozenset(
    {
        0,
        PRESERVE,
        values.VIP_EXTERNAL_IP,
        values.VIP_EXTERNAL_IP | PRESERVE,
        values.VIP_EXTERNAL_IP | values.LOCAL_ROUTED_VIP,
    }
)
"""What this program asks for."""


class BalancerForm(NamedTuple):
    """What HNS may return otherwise than it was asked for, besides addresses."""

    flags: int
    port_flags: int
    distribution: int
    source_vip: str

    @property
    def may_be_asked_for(self) -> bool:
        """Whether this program may ask for it."""
        return (
            not self.flags & ~(values.DSR | values.IPV6)
            and self.port_flags in _PORT_FLAGS
            and self.distribution in {0, values.SOURCE_IP}
        )


class BalancerForms:
    """What was asked for, and what is known of the forms of HNS."""

    def __init__(self) -> None:
        self._asked: dict[str, HcnLoadBalancer] = {}
        self._unread: set[str] = set()
        self._usual: dict[BalancerForm, BalancerForm] = {}

    def copy(self) -> "BalancerForms":
        """The same knowledge, for a rehearsal."""
        other = BalancerForms()
        other._asked, other._unread, other._usual = dict(self._asked), set(self._unread), dict(self._usual)
        return other

    def answered(self, asked: HcnLoadBalancer, answer: HcnLoadBalancer) -> None:
        """HNS has done what it was asked for, and returns this.

        If it names other endpoints, it did something else, so the form says nothing.
        """
        if answer.endpoints != asked.endpoints or len(answer.mappings) != 1:
            return
        asked = replace(asked, id=answer.id)
        self._asked[answer.id] = answer if answer == asked else asked
        form, usual = _form(asked), _form(answer)
        if form != usual and self._usual.get(form) != usual:
            self._usual[form] = usual
            log.info(
                "HNS returns load balancers in another form than asked for, which is taken as the same: %(reason)s",
                {"reason": f"{usual} for {form}"},
            )

    def unread(self, asked: HcnLoadBalancer) -> None:
        """HNS has changed a load balancer; what it returns now is not known."""
        self._asked[asked.id] = asked
        self._unread.add(asked.id)

    def first_read(self, before: HcnLoadBalancer, after: HcnLoadBalancer) -> HcnLoadBalancer | None:
        """What was asked for, if HNS changed a load balancer and this is read for the first time since.

        Args:
            before: as it was assumed to be.
            after: as HNS returns it.
        """
        if after.id not in self._unread:
            return None
        self._unread.discard(after.id)
        same = (before.endpoints, _ports(before)) == (after.endpoints, _ports(after))
        return self._asked[after.id] if same else None

    def forget(self, ident: str) -> None:
        """A load balancer is gone, or is not as it was."""
        self._asked.pop(ident, None)
        self._unread.discard(ident)

    def asked(self, held: HcnLoadBalancer) -> HcnLoadBalancer:
        """A load balancer as this process asked for it; one of an earlier process as HNS returns it."""
        return self._asked.get(held.id, held)

    def made(self, ident: str) -> bool:
        """Whether this process has asked for a load balancer."""
        return ident in self._asked

    def key(self, held: HcnLoadBalancer) -> BalancerKey | None:
        """The key of a load balancer, as it was asked for."""
        return key_of(self.asked(held))

    def as_asked(self, held: HcnLoadBalancer, wanted: HcnLoadBalancer) -> HcnLoadBalancer:
        """A load balancer in the form in which it was asked for, as far as that is known.

        Args:
            held: as HNS returned it.
            wanted: what it may have been asked for.
        """
        asked = self._asked.get(held.id)
        if asked is not None:
            return asked
        form = _form(wanted)
        usual = self._usual.get(form)
        if usual is None or usual.may_be_asked_for or len(held.mappings) != 1 or _form(held) != usual:
            return held
        (mapping,) = held.mappings
        mapping = replace(mapping, flags=form.port_flags, distribution=form.distribution)
        return replace(held, mappings=(mapping,), flags=form.flags, source_vip=form.source_vip)


def _form(balancer: HcnLoadBalancer) -> BalancerForm:
    (mapping,) = balancer.mappings
    return BalancerForm(balancer.flags, mapping.flags, mapping.distribution, balancer.source_vip)


def _ports(balancer: HcnLoadBalancer) -> list[tuple[int, int, int]]:
    return [(each.protocol, each.external_port, each.internal_port) for each in balancer.mappings]
