"""KubeProxyConfiguration in its v1alpha1 shape: the only form of the configuration in memory.

The reference has a second, internal form in which flags and sections are regrouped. Here the file's form is
kept and derived values ("the sync period of this mode") are properties, so a field has one name in the file
and in the code. Field defaults are those of Kubernetes v1.36; the ones that depend on other fields are filled
in by `load`.

A sync period that is not set stays None: the control loop then adapts the period to the load.

Source: kubeproxy.config.k8s.io/v1alpha1 API reference, https://kubernetes.io/docs/reference/config-api/.
"""

from collections.abc import Mapping
from socket import gethostname
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from kubeproxy import log
from kubeproxy.config.durations import Duration, Quantity
from kubeproxy.config.netparse import parse_cidr, split_host_port

API_VERSION: Final = "kubeproxy.config.k8s.io/v1alpha1"
KIND: Final = "KubeProxyConfiguration"

LINUX_MODES: Final = ("iptables", "ipvs", "nftables", "userspace", "ebpf")
WINDOWS_MODES: Final = ("kernelspace",)
LONGEST_INTERFACE: Final = 15
"""Bytes of the name of a network interface in Linux."""

LOCAL_MODES: Final = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
PRIMARY: Final = "primary"
"""The value in nodePortAddresses that means the addresses in the Node object."""

NODE_PORT_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    PRIMARY: (),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "all": ("0.0.0.0/0", "::/0"),
}
"""The words in nodePortAddresses (since v1.37), each with the ranges it stands for on every node."""

SYNC_PERIOD: Final = Duration(30)

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Uint32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class NanosecondDuration(Duration):
    """A duration whose number form, without unit, counts nanoseconds (logging.flushFrequency alone)."""

    __slots__ = ()


class ClientConnection(Struct, gc=False, frozen=True, rename="camel"):
    """How to reach the API server; `qps` requests a second with bursts of `burst`."""

    kubeconfig: str = ""
    accept_content_types: str = ""
    content_type: str = "application/vnd.kubernetes.protobuf"
    qps: float = 5.0
    burst: Int32 = 10


class VModule(Struct, gc=False, frozen=True, rename="camel"):
    """The verbosity of the modules whose name matches a pattern."""

    file_pattern: str
    verbosity: Uint32


class LogRouting(Struct, gc=False, frozen=True, rename="camel"):
    """Where one format writes: all to stderr, or information to stdout with a buffer of this size."""

    split_stream: bool = False
    info_buffer_size: Quantity = Quantity("0")


class LogOptions(Struct, gc=False, frozen=True):
    """The routing of each format."""

    json: LogRouting = LogRouting()
    text: LogRouting = LogRouting()


class Logging(Struct, gc=False, frozen=True, rename="camel"):
    """What is logged and how."""

    format: str = "text"
    flush_frequency: NanosecondDuration = NanosecondDuration(5)
    verbosity: Uint32 = 0
    vmodule: tuple[VModule, ...] = ()
    options: LogOptions = LogOptions()

    @property
    def routing(self) -> LogRouting:
        """The routing of the chosen format."""
        return self.options.json if self.format == "json" else self.options.text

    @property
    def settings(self) -> log.LogSettings:
        """The same for `log.setup`."""
        return log.LogSettings(
            verbosity=self.verbosity,
            vmodule=tuple((item.file_pattern, item.verbosity) for item in self.vmodule),
            format="json" if self.format == "json" else "text",
            split_stream=self.routing.split_stream,
            info_buffer_size=self.routing.info_buffer_size.bytes,
            flush_frequency=self.flush_frequency,
        )


class IPTables(Struct, gc=False, frozen=True, rename="camel"):
    """Settings of iptables mode; ipvs and userspace mode read the masquerade fields too."""

    masquerade_bit: Int32 = 14
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    sync_period: Duration | None = None
    min_sync_period: Duration | None = None


class IPVS(Struct, gc=False, frozen=True, rename="camel"):
    """Settings of ipvs mode; a timeout of 0 leaves the kernel's."""

    sync_period: Duration | None = None
    min_sync_period: Duration | None = None
    scheduler: str = ""
    exclude_cidrs: tuple[str, ...] | None = field(default=None, name="excludeCIDRs")
    strict_arp: bool = field(default=False, name="strictARP")
    tcp_timeout: Duration = Duration(0)
    tcp_fin_timeout: Duration = Duration(0)
    udp_timeout: Duration = Duration(0)


class NFTables(Struct, gc=False, frozen=True, rename="camel"):
    """Settings of nftables mode; `counters` (connections by endpoint) is not known to the reference."""

    masquerade_bit: Int32 = 14
    masquerade_all: bool = False
    sync_period: Duration | None = None
    min_sync_period: Duration | None = None
    counters: bool = False


class EBPF(Struct, gc=False, frozen=True, rename="camel"):
    """Settings of ebpf mode, which the reference does not have; it reads the section nftables, too.

    `scope` is host (sockets of the node's own namespace) or all (those of Pods, too); `peerNames` lets
    getpeername of TCP sockets return the Service's address; `strict` refuses to start where programs cannot
    run. `cgroup` and `pins` are folders of cgroup v2 and of the BPF file system, if not the usual ones.
    """

    scope: str = "host"
    peer_names: bool = True
    strict: bool = False
    cgroup: str = ""
    pins: str = ""


class Winkernel(Struct, gc=False, frozen=True, rename="camel"):
    """Settings of kernelspace mode on Windows."""

    network_name: str = ""
    source_vip: str = ""
    enable_dsr: bool = field(default=False, name="enableDSR")
    root_hns_endpoint_name: str = ""
    forward_health_check_vip: bool = False


class DetectLocal(Struct, gc=False, frozen=True, rename="camel"):
    """The interface or prefix for detectLocalMode BridgeInterface or InterfaceNamePrefix."""

    bridge_interface: str = ""
    interface_name_prefix: str = ""


class Conntrack(Struct, gc=False, frozen=True, rename="camel"):
    """Kernel settings of connection tracking; 0 leaves what the kernel has."""

    max_per_core: Int32 = 32 * 1024
    min: Int32 = 128 * 1024
    tcp_established_timeout: Duration = Duration(24 * 3600)
    tcp_close_wait_timeout: Duration = Duration(3600)
    tcp_be_liberal: bool = False
    udp_timeout: Duration = Duration(0)
    udp_stream_timeout: Duration = Duration(0)


class KubeProxyConfiguration(Struct, gc=False, frozen=True, rename="camel"):
    """All fields of a configuration file.

    Attributes:
        node_condition: write the condition ServicesProgrammed of the own Node. The reference does not know
            this field and the next two.
        destroy_sockets: destroy the sockets of clients on this host whose connections are to end.
        connection_metrics: how many endpoints may have a metric of their connections; 0: none is counted.
    """

    feature_gates: dict[str, bool] = {}
    client_connection: ClientConnection = ClientConnection()
    logging: Logging = Logging()
    hostname_override: str = ""
    bind_address: str = "0.0.0.0"
    healthz_bind_address: str = ""
    metrics_bind_address: str = ""
    bind_address_hard_fail: bool = False
    enable_profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    mode: str = ""
    iptables: IPTables = IPTables()
    ipvs: IPVS = IPVS()
    nftables: NFTables = NFTables()
    ebpf: EBPF = EBPF()
    winkernel: Winkernel = Winkernel()
    detect_local_mode: str = ""
    detect_local: DetectLocal = DetectLocal()
    cluster_cidr: str = field(default="", name="clusterCIDR")
    node_port_addresses: tuple[str, ...] | None = None
    oom_score_adj: Int32 = -999
    conntrack: Conntrack = Conntrack()
    config_sync_period: Duration = Duration(15 * 60)
    port_range: str = ""
    windows_run_as_service: bool = False
    node_condition: bool = False
    destroy_sockets: bool = False
    connection_metrics: Int32 = 0

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        """The pods' ranges in canonical form: none, one, or one of each family."""
        return _cidrs(self.cluster_cidr.split(","))

    @property
    def node_port_primary(self) -> bool:
        """Whether NodePorts are served on the addresses in the Node object."""
        return PRIMARY in (self.node_port_addresses or ())

    @property
    def node_port_cidrs(self) -> tuple[str, ...]:
        """The ranges, in canonical form, whose local addresses serve NodePorts, without those of the Node."""
        given = self.node_port_addresses or ()
        return _cidrs([cidr for text in given for cidr in NODE_PORT_WORDS.get(text, (text,))])

    @property
    def ipvs_exclude_cidrs(self) -> tuple[str, ...]:
        """The ranges, in canonical form, whose virtual servers ipvs mode leaves alone."""
        return _cidrs(self.ipvs.exclude_cidrs or ())

    @property
    def healthz_address(self) -> tuple[str, int] | None:
        """Where the health server listens; None: nowhere."""
        return _host_port(self.healthz_bind_address)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Where the metrics server listens; None: nowhere."""
        return _host_port(self.metrics_bind_address)

    @property
    def ports(self) -> tuple[int, int] | None:
        """The first and last port userspace mode may listen on; None: any free one."""
        span = parse_port_range(self.port_range)
        return None if span == (0, 0) else span

    @property
    def node_name(self) -> str:
        """The name of this node's Node object: the override, or the host name; lower case. May be empty."""
        return (self.hostname_override or gethostname()).strip().lower()


def parse_port_range(text: str) -> tuple[int, int] | None:
    """Reads `first-last`, `first+more` or `port`; empty is (0, 0), any port. None: it is no port range."""
    text = text.strip()
    if not text:
        return 0, 0
    sign = "+" if "+" in text and "-" not in text else "-"
    first, separator, last = text.partition(sign)
    numbers = [first, last] if separator else [first, first]
    if not all(n.isascii() and n.isdigit() and len(n) <= 5 for n in numbers):
        return None
    low, high = int(numbers[0]), int(numbers[1])
    if separator == "+":
        high += low
    return (low, high) if low <= high <= 65535 else None


def _cidrs(texts: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(cidr for text in texts if (cidr := parse_cidr(text)) is not None)


def _host_port(text: str) -> tuple[str, int] | None:
    parts = split_host_port(text)
    return (parts[0], int(parts[1])) if parts and parts[1].isdigit() else None
