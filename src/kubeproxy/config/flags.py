"""The table of flags: for parsing, the configuration, -h, and the table in docs/configuration.md.

One row is one flag. `config` is the field of the configuration that it sets, as a path of attributes; the few
flags whose field depends on the mode have one path for each section of periods
(`backends.mode.Mode.section`). Defaults are read from the configuration, so that they are defined once.
"""

from functools import reduce
from typing import Any, Final

from msgspec import Struct

from kubeproxy.config.defaults import DEFAULTS, HEALTHZ_PORT, METRICS_PORT
from kubeproxy.config.gates import GATES
from kubeproxy.config.kinds import KINDS, show
from kubeproxy.config.types import SYNC_PERIOD


class Flag(Struct, gc=False, frozen=True):
    """One flag.

    Attributes:
        name: its name, without dashes in front.
        kind: the name of its type in `KINDS`.
        group: its heading in the help.
        help: what it does.
        config: the attribute path of the field it sets, or one for each section.
        default: the default shown, for a flag without field.
        short: its one-letter form.
        deprecated: what to do instead.
        always: whether it counts together with --config.
        windows: whether it exists on Windows only.
    """

    name: str
    kind: str
    group: str
    help: str
    config: str | dict[str, str] = ""
    default: str = ""
    short: str = ""
    deprecated: str = ""
    always: bool = False
    windows: bool = False

    @property
    def usage(self) -> str:
        """How it is written, e.g. `-v, --v Level`."""
        label = KINDS[self.kind].label
        return (f"-{self.short}, " if self.short else "") + f"--{self.name}" + (f" {label}" if label else "")

    @property
    def paths(self) -> tuple[str, ...]:
        """The attribute paths of the fields it can set."""
        if isinstance(self.config, dict):
            return tuple(dict.fromkeys(self.config.values()))
        return (self.config,) if self.config else ()

    @property
    def default_text(self) -> str:
        """Its default; empty for what is off, empty or adapts itself."""
        if not self.paths:
            return self.default
        value = get(DEFAULTS, self.paths[0])
        if value is None and self.paths[0].endswith(".sync_period"):
            value = SYNC_PERIOD
        return show(value) if value else ""


def get(value: Any, path: str) -> Any:
    """Follows a path of attributes."""
    return reduce(getattr, path.split("."), value)


_PERIOD = {"iptables": "iptables.sync_period", "nftables": "nftables.sync_period"}
_MIN_PERIOD = {"iptables": "iptables.min_sync_period", "nftables": "nftables.min_sync_period"}
_MASQUERADE = {
    "iptables": "iptables.masquerade_all",
    "ipvs": "iptables.masquerade_all",
    "nftables": "nftables.masquerade_all",
}
_LOG_SPLIT = (
    "Write information to stdout and errors to stderr, instead of all to stderr. Needs LoggingAlphaOptions."
)
_LOG_BUFFER = (
    "With split streams, collect this much information before writing it. Needs LoggingAlphaOptions."
)

SETUP: Final = "What to do"
CLUSTER: Final = "API server"
NODE: Final = "Node and listeners"
MODE: Final = "Mode and synchronisation"
LOCAL: Final = "Local traffic and NodePorts"
KERNEL: Final = "Kernel and process"
LOGGING: Final = "Logging"
OURS: Final = "Beyond the reference"
IGNORED: Final = "Accepted without effect"
WINDOWS: Final = "Windows"

FLAGS: Final = (
    Flag("config", "string", SETUP, "The configuration file. Most other flags are then ignored. A change of the file is taken while the process runs.", always=True),
    Flag("write-config-to", "string", SETUP, "Write the configuration in effect to this file and exit.", always=True),
    Flag("cleanup", "bool", SETUP, "Remove everything any mode has put into the kernel and exit.", always=True),
    Flag("init-only", "bool", SETUP, "Do the set-up that needs full privileges and exit; afterwards CAP_NET_ADMIN is enough.", always=True),
    Flag("feature-gates", "gates", SETUP, f"Switches for features that are new or going away. kube-proxy's own are {', '.join(sorted(GATES))}.", "feature_gates"),
    Flag("version", "version", SETUP, "Print the version and exit; --version=raw prints every part of it. --version=vX.Y.Z-name prints nothing and shows this program as that version in kubernetes_build_info.", always=True),
    Flag("help", "bool", SETUP, "Print this text and exit.", short="h", always=True),

    Flag("kubeconfig", "string", CLUSTER, "The file with address and credentials of the API server. Without it and --master, the pod's service account is used.", "client_connection.kubeconfig"),
    Flag("master", "string", CLUSTER, "The address of the API server, instead of the one in the kubeconfig.", always=True),
    Flag("kube-api-content-type", "string", CLUSTER, "The content type requested from the API server. Accepted without effect: JSON is used.", "client_connection.content_type"),
    Flag("kube-api-burst", "int", CLUSTER, "How many requests to the API server may go out at once. 0: the default.", "client_connection.burst"),
    Flag("kube-api-qps", "float", CLUSTER, "How many requests a second may go to the API server in the long run. 0: the default.", "client_connection.qps"),
    Flag("config-sync-period", "duration", CLUSTER, "How often all known objects are checked again. More than 0.", "config_sync_period"),

    Flag("hostname-override", "string", NODE, "The name of this node's Node object, if it is not the host name.", "hostname_override", always=True),
    Flag("bind-address", "address", NODE, "The node's primary IP, if it is not the one in the Node object. No socket is bound to it. In a configuration file, an IPv6 address moves the defaults of the two listeners below to IPv6.", "bind_address"),
    Flag("healthz-bind-address", "listen", NODE, "Where /healthz and /livez are served. Empty: nowhere.", "healthz_bind_address"),
    Flag("metrics-bind-address", "listen", NODE, "Where /metrics and the other status pages are served. Empty: nowhere.", "metrics_bind_address"),
    Flag("bind-address-hard-fail", "bool", NODE, "Exit when a listener cannot be bound, instead of trying again.", "bind_address_hard_fail"),
    Flag("profiling", "bool", NODE, "Serve profiles under /debug/pprof on the metrics address.", "enable_profiling"),
    Flag("show-hidden-metrics-for-version", "string", NODE, "Also serve the metrics hidden since this version. Only the previous minor version is accepted.", "show_hidden_metrics_for_version"),
    Flag("healthz-port", "int", NODE, "The port of the health server if its address has none; 0 turns it off.", default=str(HEALTHZ_PORT), deprecated="use --healthz-bind-address"),
    Flag("metrics-port", "int", NODE, "The port of the metrics server if its address has none; 0 turns it off.", default=str(METRICS_PORT), deprecated="use --metrics-bind-address"),

    Flag("proxy-mode", "string", MODE, "How Services are programmed: iptables, nftables, ipvs, userspace or ebpf (both ours); kernelspace on Windows. Empty: iptables, or kernelspace.", "mode"),
    Flag("iptables-sync-period", "duration", MODE, "The longest time between two checks of the rules, in every mode except ipvs. More than 0.", _PERIOD),
    Flag("iptables-min-sync-period", "duration", MODE, "The least time between two syncs, in every mode but ipvs. Unset or 0: adapts to the load.", _MIN_PERIOD),
    Flag("iptables-masquerade-bit", "int", MODE, "The bit of the packet mark that asks for masquerading, 0 to 31, in every mode but nftables.", "iptables.masquerade_bit"),
    Flag("iptables-localhost-nodeports", "bool", MODE, "Let NodePorts be reached at 127.0.0.1, in iptables mode.", "iptables.localhost_node_ports"),
    Flag("masquerade-all", "bool", MODE, "Masquerade all traffic sent to ClusterIPs. Some network plugins need it.", _MASQUERADE),
    Flag("ipvs-sync-period", "duration", MODE, "The longest time between two checks of the rules, in ipvs mode. More than 0.", {"ipvs": "ipvs.sync_period"}),
    Flag("ipvs-min-sync-period", "duration", MODE, "The least time between two syncs, in ipvs mode. Unset or 0: adapts to the load.", {"ipvs": "ipvs.min_sync_period"}),
    Flag("ipvs-scheduler", "string", MODE, "The scheduler of ipvs mode: rr, lc, wrr, sh, mh and so on. Empty: rr.", "ipvs.scheduler"),
    Flag("ipvs-exclude-cidrs", "list", MODE, "Ranges whose virtual servers ipvs mode leaves alone.", "ipvs.exclude_cidrs"),
    Flag("ipvs-strict-arp", "bool", MODE, "Answer and announce ARP for an address on its own interface only, in ipvs mode.", "ipvs.strict_arp"),
    Flag("ipvs-tcp-timeout", "duration", MODE, "How long ipvs keeps an idle TCP connection; 0 leaves the kernel's.", "ipvs.tcp_timeout"),
    Flag("ipvs-tcpfin-timeout", "duration", MODE, "How long ipvs keeps a TCP connection after its FIN; 0 leaves the kernel's.", "ipvs.tcp_fin_timeout"),
    Flag("ipvs-udp-timeout", "duration", MODE, "How long ipvs keeps an idle UDP flow; 0 leaves the kernel's.", "ipvs.udp_timeout"),

    Flag("detect-local-mode", "string", LOCAL, "How traffic of this node's pods is recognised: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix. Empty: ClusterCIDR.", "detect_local_mode"),
    Flag("cluster-cidr", "string", LOCAL, "The range of the cluster's pods, or a pair of one IPv4 and one IPv6 range.", "cluster_cidr"),
    Flag("pod-bridge-interface", "string", LOCAL, "The bridge the pods are on, for BridgeInterface.", "detect_local.bridge_interface"),
    Flag("pod-interface-name-prefix", "string", LOCAL, "How the names of the pods' interfaces begin, for InterfaceNamePrefix.", "detect_local.interface_name_prefix"),
    Flag("nodeport-addresses", "list", LOCAL, "Ranges of node addresses that serve NodePorts, and the words primary (the addresses in the Node object), localhost (the loopback addresses) and all. Empty: all addresses; in nftables mode primary.", "node_port_addresses"),

    Flag("conntrack-max-per-core", "int", KERNEL, "How many connections to track for each CPU; 0 leaves the kernel's limit and ignores --conntrack-min.", "conntrack.max_per_core"),
    Flag("conntrack-min", "int", KERNEL, "How many connections to track at least, whatever the number of CPUs.", "conntrack.min"),
    Flag("conntrack-tcp-timeout-established", "duration", KERNEL, "How long an idle TCP connection is tracked; 0 leaves the kernel's.", "conntrack.tcp_established_timeout"),
    Flag("conntrack-tcp-timeout-close-wait", "duration", KERNEL, "How long a TCP connection in CLOSE_WAIT is tracked; 0 leaves the kernel's.", "conntrack.tcp_close_wait_timeout"),
    Flag("conntrack-tcp-be-liberal", "bool", KERNEL, "Do not treat TCP packets outside the window as invalid.", "conntrack.tcp_be_liberal"),
    Flag("conntrack-udp-timeout", "duration", KERNEL, "How long a UDP flow without answer is tracked; 0 leaves the kernel's.", "conntrack.udp_timeout"),
    Flag("conntrack-udp-timeout-stream", "duration", KERNEL, "How long a UDP flow with answers is tracked; 0 leaves the kernel's.", "conntrack.udp_stream_timeout"),
    Flag("oom-score-adj", "int", KERNEL, "How much the kernel spares this process when memory runs out, -1000 to 1000.", "oom_score_adj"),

    Flag("v", "level", LOGGING, "How much is logged.", "logging.verbosity", short="v", always=True),
    Flag("vmodule", "vmodule", LOGGING, "How much single modules log; the patterns may have * and ?. For the text format.", "logging.vmodule", always=True),
    Flag("logging-format", "string", LOGGING, "text or json.", "logging.format", always=True),
    Flag("log-flush-frequency", "duration", LOGGING, "How long information may wait in a buffer. More than 0.", "logging.flush_frequency", always=True),
    Flag("log-text-split-stream", "bool", LOGGING, f"[Alpha] Text format: {_LOG_SPLIT}", "logging.options.text.split_stream", always=True),
    Flag("log-text-info-buffer-size", "size", LOGGING, f"[Alpha] Text format: {_LOG_BUFFER}", "logging.options.text.info_buffer_size", always=True),
    Flag("log-json-split-stream", "bool", LOGGING, f"[Alpha] JSON format: {_LOG_SPLIT}", "logging.options.json.split_stream", always=True),
    Flag("log-json-info-buffer-size", "size", LOGGING, f"[Alpha] JSON format: {_LOG_BUFFER}", "logging.options.json.info_buffer_size", always=True),

    Flag("manifests", "paths", OURS, "A file or directory of Services and EndpointSlices to serve instead of a cluster's. May be repeated.", always=True),
    Flag("proxy-port-range", "string", OURS, "Ports userspace mode may listen on: first-last, first+more, or one port. Empty: any.", "port_range"),
    Flag("userspace-listen", "bool", OURS, "In userspace mode, listen on the Services' own addresses and ports and leave packet filter rules alone.", always=True),
    Flag("journal", "string", OURS, "A folder in which the changes of the last hours are kept, for kube-proxy replay and explain --at. Empty: they are not kept.", always=True),
    Flag("journal-size", "size", OURS, "How many bytes the journal may have. At least 1Mi.", default="64Mi", always=True),
    Flag("status-page", "string", OURS, "When the status page is served, at / on the metrics address: loopback (only at an address that only this host can reach), always or never.", default="loopback", always=True),
    Flag("nftables-counters", "bool", OURS, "In nftables mode, let the kernel count the connections of each endpoint.", "nftables.counters"),
    Flag("node-condition", "bool", OURS, "Write whether this node serves the cluster's Services to its Node object, as the condition ServicesProgrammed. Needs the right to patch nodes/status.", "node_condition"),
    Flag("destroy-sockets", "bool", OURS, "End connections to removed endpoints, of Services whose annotation asks for it, also where the client only waits: its socket is destroyed, in the network namespace of its Pod. Needs CAP_SYS_ADMIN.", "destroy_sockets"),
    Flag("connection-metrics", "int", OURS, "For so many endpoints, report as a metric how many connections they were sent. 0: for none. In nftables mode, needs --nftables-counters.", "connection_metrics"),
    Flag("ebpf-scope", "string", OURS, "In ebpf mode, whose connections are made to endpoints at once: host (processes in the node's own network namespace) or all (Pods', too).", "ebpf.scope"),
    Flag("ebpf-peer-names", "bool", OURS, "In ebpf mode, let getpeername of a TCP socket return the Service's address, not the endpoint's.", "ebpf.peer_names"),
    Flag("ebpf-strict", "bool", OURS, "In ebpf mode, exit where the kernel cannot run the programs, instead of serving by nftables rules alone.", "ebpf.strict"),
    Flag("ebpf-cgroup", "string", OURS, "The folder of the cgroup (version 2) whose processes ebpf mode serves. Empty: the root of the host's.", "ebpf.cgroup"),
    Flag("ebpf-pins", "string", OURS, "The folder in a BPF file system in which ebpf mode keeps its programs and maps. Empty: /sys/fs/bpf/kube-proxy.", "ebpf.pins"),
    Flag("cleanup-force", "bool", OURS, "Let --cleanup remove everything although another kube-proxy runs on this node.", always=True),
    Flag("cleanup-variant", "string", OURS, "Let --cleanup remove only the rules in the tables of one variant of iptables: legacy or nf_tables. For a node whose kube-proxy uses the other variant or none, and may run meanwhile.", always=True),

    Flag("boot-id-file", "string", IGNORED, "For programs that share flags with cAdvisor.", always=True),
    Flag("machine-id-file", "string", IGNORED, "For programs that share flags with cAdvisor.", always=True),

    Flag("windows-service", "bool", WINDOWS, "Run as a Windows service. Warnings and errors are in the event log, too.", "windows_run_as_service", windows=True),
    Flag("log-file", "string", WINDOWS, "Write the log to this file, not to stdout and stderr, which a service does not have. The file is renamed when it has 32 MiB, and 4 older ones are kept. Ours.", always=True, windows=True),
    Flag("network-name", "string", WINDOWS, "The HNS network.", "winkernel.network_name", windows=True),
    Flag("source-vip", "string", WINDOWS, "The source address for NAT on overlay networks.", "winkernel.source_vip", windows=True),
    Flag("enable-dsr", "bool", WINDOWS, "Let backends answer clients directly.", "winkernel.enable_dsr", windows=True),
    Flag("root-hnsendpoint-name", "string", WINDOWS, "The HNS endpoint of the host on an l2bridge network. Empty: cbr0.", "winkernel.root_hns_endpoint_name", windows=True),
    Flag("forward-healthcheck-vip", "bool", WINDOWS, "Forward the Service's health check port too.", "winkernel.forward_health_check_vip", windows=True),
)  # fmt: skip
"""Every flag, in the order of the help."""


def known(platform: str) -> dict[str, Flag]:
    """The flags that exist on a platform (`sys.platform`), by name."""
    return {flag.name: flag for flag in FLAGS if not flag.windows or platform == "win32"}
