"""What the checks look at, read once.

Each part was read, or there is a reason why not: `facts.tracking()` returns the part or raises UnreadError
with the reason.
"""

from collections.abc import Mapping
from typing import Generic, TypeVar

from msgspec import Struct

from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import KernelComparison
from kubeproxy.config.load import RunOptions
from kubeproxy.linux.instance import Holder
from kubeproxy.linux.process import Process, RunningProgram
from kubeproxy.model.findings import Findings
from kubeproxy.model.plan import Front, Key, ServicePlan
from kubeproxy.netlink.nft.objects import AnyChain
from kubeproxy.netlink.route import Address, Link

T = TypeVar("T")


class UnreadError(Exception):
    """Something could not be looked at; the message says why."""


class Part(Struct, Generic[T], frozen=True):
    """A part of the facts: its value, or why it could not be read."""

    value: T | None = None
    reason: str = ""

    def __call__(self) -> T:
        """The value.

        Raises:
            UnreadError: it could not be read.
        """
        if self.value is None:
            raise UnreadError(self.reason or "it was not read")
        return self.value


class SettingsRead(Struct, frozen=True):
    """Kernel settings.

    Attributes:
        values: those that exist, by name, e.g. "net/ipv4/ip_forward".
        unread: why others could not be read, by name.
    """

    values: Mapping[str, str] = {}
    unread: Mapping[str, str] = {}

    def get(self, name: str) -> str | None:
        """The value of a setting; None if this kernel does not have it.

        Raises:
            UnreadError: it could not be read.
        """
        if name in self.unread:
            raise UnreadError(f"{name.replace('/', '.')}: {self.unread[name]}")
        return self.values.get(name)

    def number(self, name: str) -> int | None:
        """The value of a setting that is a number; None if this kernel does not have it.

        Raises:
            UnreadError: it could not be read.
        """
        text = self.get(name)
        return int(text) if text is not None and text.isdecimal() else None


class Sample(Struct, frozen=True):
    """One line of /metrics."""

    name: str
    labels: Mapping[str, str]
    value: float


class RunningDaemon(Struct, frozen=True):
    """The kube-proxy that runs in this network namespace.

    Attributes:
        holder: the process that holds its lock; None if there is none.
        process: that process.
        reasons: why it is not ready, as /readyz says; empty if it is ready.
        samples: its metrics.
        now: the time of day at which these were read, in seconds since 1970.
    """

    holder: Holder | None
    process: Part[Process]
    reasons: Part[tuple[str, ...]]
    samples: Part[tuple[Sample, ...]]
    now: float = 0.0

    def total(self, name: str) -> float:
        """The sum of the samples of a metric; 0 if there is none.

        Raises:
            UnreadError: the metrics could not be read.
        """
        return sum(sample.value for sample in self.samples() if sample.name == name)


class LegacyTable(Struct, frozen=True):
    """A table of the legacy mechanism of iptables.

    Attributes:
        rules: the number of its rules, with those that each table has for its built-in chains.
        markers: which of the names that `gather` looks for are in it.
        forward_drops: the policy of its chain FORWARD is to drop.
    """

    family: Family
    table: str
    rules: int
    markers: frozenset[str]
    forward_drops: bool


class ConnectProgram(Struct, frozen=True):
    """An eBPF program that the kernel runs when a process connects a socket.

    Attributes:
        number: its ID.
        name: its name; "" if we may not ask for it.
    """

    number: int
    name: str


class FlowCount(Struct, frozen=True):
    """Tracked flows to one front that one place answers.

    Attributes:
        front: where the clients send, an address and a port.
        endpoint: where answers come from, an address and a port; the front if packets are not translated.
        state: its state, as `ConntrackFlow.state`.
        replied: a reply was seen.
        zone: the conntrack zone is not 0.
        count: how many flows.
    """

    protocol: str
    front: tuple[str, int]
    endpoint: tuple[str, int]
    state: str
    replied: bool
    zone: bool
    count: int


class Tracking(Struct, frozen=True):
    """Connection tracking.

    Attributes:
        entries: how many flows are tracked.
        most: how many can be.
        counters: counters by the names that `conntrack -S` prints.
        flows: the flows that have ports.
        complete: all flows were read.
    """

    entries: int
    most: int
    counters: Mapping[str, int]
    flows: tuple[FlowCount, ...]
    complete: bool = True


class ListeningSocket(Struct, frozen=True):
    """A socket that a process of this node listens on, or of UDP, is bound to."""

    protocol: str
    address: str
    port: int


class Probes(Struct, frozen=True):
    """Connections that were tried from this node.

    Attributes:
        endpoints: what was seen at each address and port: "" for a connection, else the error.
        fronts: the same for the fronts of Services.
        services: the Services of each endpoint.
        left: how many endpoints were not tried.
    """

    endpoints: Mapping[tuple[str, int], str]
    fronts: Mapping[tuple[Key, Front], str]
    services: Mapping[tuple[str, int], tuple[Key, ...]]
    left: int = 0


class Facts(Struct, frozen=True):
    """Everything.

    Attributes:
        snapshot: the Services and endpoints, and the node.
        options: the configuration, and what the command line of kube-proxy says.
        daemon: the kube-proxy that runs here.
        release: the version of the kernel.
        processors: how many processors the node has.
        settings: kernel settings.
        programs: the processes in this network namespace.
        links: the interfaces.
        addresses: the addresses of the host.
        routes: for ClusterIPs, whether this host has a route to them.
        chains: the chains of nf_tables.
        table_comments: the comments of tables `kube-proxy` of nf_tables, by family.
        legacy: the tables of legacy iptables.
        tracking: connection tracking.
        listeners: the listening sockets.
        connectors: the programs that are run when a process connects a socket or sends a datagram.
        neighbours: how many neighbours of each family the kernel knows.
        probes: connections that were tried.
        rules: how the rules in the kernel differ from the plans.
        plans: the plans of all Services; empty if Services could not be read.
        only: the Service that is asked about; None for all.
        worked_out: what `findings` returned.
    """

    snapshot: Part[Snapshot]
    options: Part[RunOptions]
    daemon: Part[RunningDaemon]
    release: Part[str]
    processors: int
    settings: Part[SettingsRead]
    programs: Part[tuple[RunningProgram, ...]]
    links: Part[tuple[Link, ...]]
    addresses: Part[tuple[Address, ...]]
    routes: Part[Mapping[str, bool]]
    chains: Part[tuple[AnyChain, ...]]
    table_comments: Part[Mapping[Family, str]]
    legacy: Part[tuple[LegacyTable, ...]]
    tracking: Part[Tracking]
    listeners: Part[tuple[ListeningSocket, ...]]
    connectors: Part[tuple[ConnectProgram, ...]]
    neighbours: Part[Mapping[Family, int]]
    probes: Part[Probes]
    rules: Part[Mapping[Family, KernelComparison]]
    plans: Mapping[Family, Mapping[Key, ServicePlan]] = {}
    only: Key | None = None
    worked_out: list[Findings] = []

    def setting(self, name: str) -> str | None:
        """A kernel setting; None if this kernel does not have it.

        Raises:
            UnreadError: it could not be read.
        """
        return self.settings().get(name)

    def findings(self) -> Findings:
        """The probable mistakes in the Services that are asked about, worked out once for all checks.

        Raises:
            UnreadError: Services or the configuration could not be read.
        """
        if not self.worked_out:
            taken = self.snapshot()
            found = Findings(
                taken.state,
                taken.name,
                orphans=bool(self.options().manifests),
                balancing=taken.mode.balancing,
            )
            if self.only is None:
                found.touch_all()
            else:
                found.touch(self.only)
            found.update()
            self.worked_out.append(found)
        return self.worked_out[0]

    def mine(self, key: Key) -> bool:
        """Whether a Service is asked about."""
        return self.only is None or key == self.only

    def all_plans(self) -> list[tuple[Family, Key, ServicePlan]]:
        """The plans of the Services that are asked about.

        Raises:
            UnreadError: Services could not be read.
        """
        self.snapshot()
        return [
            (family, key, plan)
            for family, plans in self.plans.items()
            for key, plan in plans.items()
            if self.mine(key)
        ]
