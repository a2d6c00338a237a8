"""A mode as a value: everything about a way of programming Services that is not its driver.

There is one value in the `mode` module of each mode. What depends on the mode elsewhere (configuration, node,
metrics, conntrack, clean-up) is asked of this value, so that nothing outside this package compares the names
of modes. The functions of a mode import the rest of its package when they are called, so that reading a mode
does not load its driver.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from kubeproxy.api.addresses import FAMILIES, Family
from kubeproxy.backends.base import Comparable, ConnectionCounter, Driver, UnsupportedError
from kubeproxy.backends.sockets import TranslatedSockets
from kubeproxy.config.checks import Problem
from kubeproxy.config.durations import Duration
from kubeproxy.config.types import IPVS, SYNC_PERIOD, IPTables, KubeProxyConfiguration, NFTables
from kubeproxy.model.distribution import BalancingSupport
from kubeproxy.model.manners import Manners
from kubeproxy.model.node import NodeConfig

if TYPE_CHECKING:
    from kubeproxy.backends.programs import Tables
    from kubeproxy.backends.relayed import RelaySocket
    from kubeproxy.machine.base import Machine
    from kubeproxy.model.plan import Key, ServicePlan

    Plans = Mapping[Key, ServicePlan]
    Sockets = Sequence[RelaySocket] | None


class FailureMetric(Struct, frozen=True, gc=False):
    """A counter of failed syncs, under the name the reference has for it in a mode.

    Attributes:
        name: the metric's name.
        help: the help text.
        partial: only syncs of changes are counted; otherwise full syncs, too.
    """

    name: str
    help: str = "Syncs that failed and were done again."
    partial: bool = False


def _no_problems(_: KubeProxyConfiguration) -> Iterable[Problem]:
    return ()


def _no_doubts(_: KubeProxyConfiguration, __: Family) -> Iterable[str]:
    return ()


def _no_settings(_: KubeProxyConfiguration) -> None:
    return None


def _same(node: NodeConfig, _: KubeProxyConfiguration) -> NodeConfig:
    return node


class Mode(Struct, frozen=True, kw_only=True):
    """One way of programming Services.

    Attributes:
        name: the name in the configuration.
        platforms: the values of `sys.platform` it runs on.
        families: the IP families it can serve.
        section: the section of the configuration that holds its periods.
        masquerade: the section that holds masqueradeAll and masqueradeBit for it.
        node_port_addresses: the default of nodePortAddresses.
        without_rules: the mode that does the same without rules in the kernel; "" if there is none.
        replaces: the modes whose rules are removed when the mode's own are in place, as the reference does.
        tracked: conntrack tracks the flows to its Services, so stale ones must be deleted.
        forwards: the kernel forwards packets to endpoints; otherwise this process connects to them.
        limits_sources: it applies allowed and denied sources to node ports and external IPs.
        balancing: which ways to divide connections it has.
        lasting: what it leaves in the kernel serves Services after the process has ended.
        piecewise: of a Service that the kernel refuses, everything is there but the pieces that are refused;
            otherwise the Service keeps what it had.
        filters: it distinguishes packets by more than their destination: traffic of local Pods, and the
            addresses that serve node ports.
        manners: what it does where the plans do not decide; None: the verdict has no answer for it.
        failure_metrics: the reference's counters of failed syncs that it has.
        node: adds what the mode needs to know to the value of the node.
        settings: what its drivers depend on of fields that are otherwise of the servers only.
        problems: the fields of its sections that break a rule.
        doubts: what is probably a mistake, on a host that has one IP family only.
        open: makes the driver of a family on a machine and prepares the kernel for it. It raises
            UnsupportedError if the mode cannot run here, and SyncError if it cannot run now.
        install: does once for a family what needs more rights than the daemon has afterwards; it raises
            UnsupportedError if the mode cannot run here. None: `open` does everything.
        reader: makes a driver of a family that can only read and compare; unlike `open` it changes nothing.
            It is given the sockets of the relay of the process that programs the mode; None if they are not
            known. It raises OSError, UnsupportedError or SyncError if the kernel cannot be read. None: what
            the mode has in the kernel is known to that process only.
        lead: plans as the kernel has them on a node, with these sockets of the relay in place of endpoints.
            None: the kernel has the plans themselves.
        counter: makes what reads the counts of connections of a family from the mode's rules. It raises
            OSError, UnsupportedError or SyncError if they cannot be read. None: the rules count nothing.
        sockets: makes what finds and destroys sockets of a family that the mode connected to endpoints; None:
            it connects none.
        describe: what the kernel must contain for a Service on a node, in the syntax of the system's own
            tools; the number is that of the endpoints of all Services. None: that depends on the process
            that programs it.
        clean_configured: the same as `cleanup` in a mode whose configuration determines what is its own.
        cleanup: removes what the mode, or the reference in it, left in the kernel of a machine. It raises
            OSError or SyncError if something was refused; all else is removed. None: it leaves nothing but
            what other modes remove.
        serves: whether what was left in the kernel has the address of a Service. It raises OSError or
            SyncError if that cannot be read.
        clean_tables: removes the mode's rules from some tables of iptables and returns how many that were;
            None: it has none there.
    """

    name: str
    platforms: frozenset[str] = frozenset({"linux"})
    families: tuple[Family, ...] = FAMILIES
    section: Literal["iptables", "ipvs", "nftables"] = "iptables"
    masquerade: Literal["iptables", "nftables"] = "iptables"
    node_port_addresses: tuple[str, ...] | None = None
    without_rules: str = ""
    replaces: tuple[str, ...] = ()
    tracked: bool = True
    forwards: bool = True
    limits_sources: bool = True
    balancing: BalancingSupport = BalancingSupport()
    lasting: bool = True
    piecewise: bool = False
    filters: bool = True
    manners: Manners | None = None
    failure_metrics: tuple[FailureMetric, ...] = ()
    node: Callable[[NodeConfig, KubeProxyConfiguration], NodeConfig] = _same
    settings: Callable[[KubeProxyConfiguration], object] = _no_settings
    problems: Callable[[KubeProxyConfiguration], Iterable[Problem]] = _no_problems
    doubts: Callable[[KubeProxyConfiguration, Family], Iterable[str]] = _no_doubts
    open: "Callable[[Machine, NodeConfig], Driver]"
    install: "Callable[[Machine, NodeConfig], None] | None" = None
    reader: "Callable[[Machine, NodeConfig, Sockets], Comparable] | None" = None
    lead: "Callable[[Plans, NodeConfig, Sequence[RelaySocket]], Plans] | None" = None
    counter: "Callable[[Machine, NodeConfig], ConnectionCounter] | None" = None
    sockets: "Callable[[Machine, NodeConfig], TranslatedSockets] | None" = None
    describe: "Callable[[NodeConfig, ServicePlan, int], list[str]] | None" = None
    cleanup: "Callable[[Machine], None] | None" = None
    clean_configured: "Callable[[Machine, KubeProxyConfiguration], None] | None" = None
    serves: "Callable[[Machine], bool] | None" = None
    clean_tables: "Callable[[Tables], int] | None" = None

    def superseded(self, before: "Iterable[Mode]") -> tuple[str, ...]:
        """The modes whose rules are to be removed when the mode's own are in place.

        A mode that replaces none has no rules, and may only remove those that this process wrote itself.

        Args:
            before: the modes that this process ran in before, as far as their rules may be there.
        """
        return self.replaces or tuple({each.name: None for each in before if each.name != self.name})

    def sync_period(self, config: KubeProxyConfiguration) -> Duration:
        """How often, in seconds, clean-up and re-synchronisation happen at least."""
        period = self._periods(config).sync_period
        return SYNC_PERIOD if period is None else period

    def min_sync_period(self, config: KubeProxyConfiguration) -> Duration | None:
        """The minimum time between two syncs in seconds; None if not configured: adapt to the load."""
        return self._periods(config).min_sync_period or None

    def masquerade_all(self, config: KubeProxyConfiguration) -> bool:
        """Whether all traffic to a ClusterIP is masqueraded."""
        return self._masquerade(config).masquerade_all

    def masquerade_bit(self, config: KubeProxyConfiguration) -> int:
        """The number of the packet mark's bit that asks for masquerading."""
        return self._masquerade(config).masquerade_bit

    def _periods(self, config: KubeProxyConfiguration) -> IPTables | IPVS | NFTables:
        found: IPTables | IPVS | NFTables = getattr(config, self.section)
        return found

    def _masquerade(self, config: KubeProxyConfiguration) -> IPTables | NFTables:
        found: IPTables | NFTables = getattr(config, self.masquerade)
        return found


def unavailable(name: str, available: Iterable[str]) -> Mode:
    """The mode of a name that is not known: it has no sections of its own and cannot be opened."""

    def refuse(_: "Machine", __: NodeConfig) -> Driver:
        raise UnsupportedError(f"proxy mode {name} is not available; available: {', '.join(available)}")

    return Mode(name=name, open=refuse, lasting=False, platforms=frozenset())
