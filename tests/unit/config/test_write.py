import string

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kubeproxy import backends
from kubeproxy.config import ConfigError
from kubeproxy.config.commandline import parse
from kubeproxy.config.decode import decode
from kubeproxy.config.defaults import DEFAULTS, with_defaults
from kubeproxy.config.durations import Duration, Quantity
from kubeproxy.config.flags import known
from kubeproxy.config.load import load
from kubeproxy.config.types import (
    IPVS,
    SYNC_PERIOD,
    ClientConnection,
    Conntrack,
    DetectLocal,
    IPTables,
    KubeProxyConfiguration,
    Logging,
    LogOptions,
    LogRouting,
    NanosecondDuration,
    NFTables,
    VModule,
    Winkernel,
)
from kubeproxy.config.validate import validate
from kubeproxy.config.write import dump, write

STANDARD = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 10
  contentType: application/vnd.kubernetes.protobuf
  kubeconfig: ""
  qps: 5
clusterCIDR: ""
configSyncPeriod: 15m0s
conntrack:
  maxPerCore: 32768
  min: 131072
  tcpBeLiberal: false
  tcpCloseWaitTimeout: 1h0m0s
  tcpEstablishedTimeout: 24h0m0s
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
ebpf:
  cgroup: ""
  peerNames: true
  pins: ""
  scope: host
  strict: false
enableProfiling: false
healthzBindAddress: 0.0.0.0:10256
hostnameOverride: ""
iptables:
  localhostNodePorts: true
  masqueradeAll: false
  masqueradeBit: 14
  minSyncPeriod: 0s
  syncPeriod: 30s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 5s
  format: text
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: 127.0.0.1:10249
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: 14
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: -999
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""


def test_the_default_looks_like_the_references():
    assert dump(DEFAULTS) == STANDARD


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ("iptables", {"iptables": ("30s", "0s"), "ipvs": ("0s", "0s"), "nftables": ("0s", "0s")}),
        ("userspace", {"iptables": ("30s", "0s"), "ipvs": ("0s", "0s"), "nftables": ("0s", "0s")}),
        ("ipvs", {"iptables": ("0s", "0s"), "ipvs": ("30s", "0s"), "nftables": ("0s", "0s")}),
        ("nftables", {"iptables": ("0s", "0s"), "ipvs": ("0s", "0s"), "nftables": ("30s", "0s")}),
    ],
)
def test_periods_nobody_set_are_shown_for_the_mode_only(mode, shown):
    import yaml

    written = yaml.safe_load(dump(with_defaults(KubeProxyConfiguration(mode=mode))))
    assert {name: (written[name]["syncPeriod"], written[name]["minSyncPeriod"]) for name in shown} == shown


def test_what_is_seldom_set_appears_when_it_is():
    config = msgspec.structs.replace(
        DEFAULTS,
        feature_gates={"B": True, "A": False},
        node_port_addresses=("10.0.0.0/8", "::/0"),
        windows_run_as_service=True,
        ipvs=IPVS(exclude_cidrs=()),
        client_connection=ClientConnection(qps=2.5),
        conntrack=Conntrack(udp_timeout=Duration(0.0015)),
        logging=Logging(
            vmodule=(VModule("a", 1),), options=LogOptions(text=LogRouting(True, Quantity("64Ki")))
        ),
    )
    text = dump(config)
    for part in (
        "featureGates:\n  A: false\n  B: true\n",
        "nodePortAddresses:\n- 10.0.0.0/8\n- ::/0\n",
        "windowsRunAsService: true\n",
        "  excludeCIDRs: []\n",
        "  qps: 2.5\n",
        "  udpTimeout: 1.5ms\n",
        "    text:\n      infoBufferSize: 64Ki\n      splitStream: true\n",
        "  vmodule:\n  - filePattern: a\n    verbosity: 1\n",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("name", "written"),
    [("", '""'), ("0", '"0"'), ("true", '"true"'), ("yes", '"yes"'), ("y", '"y"'), ("null", '"null"'), ("1e3", '"1e3"'),
     ("12:30", '"12:30"'), ("2024-01-01", '"2024-01-01"'), ("0x1F", '"0x1F"'), ("a: b", "'a: b'"), ("*a", "'*a'"),
     ("plain text", "plain text"), ("::", "'::'"), ("[::]:80", "'[::]:80'"), ("knöten", "knöten"), ("a\x85b\n", '"a\\Nb\\n"')],
)  # fmt: skip
def test_text_is_quoted_where_it_must_be(name, written):
    assert f"\nportRange: {written}\n" in dump(msgspec.structs.replace(DEFAULTS, port_range=name))


@settings(deadline=None)
@given(st.data())
def test_what_was_written_is_read_back(data):
    config = with_defaults(data.draw(CONFIGURATIONS))
    text = dump(config)
    read, doubts = decode(text.encode(), "f")
    assert doubts == ()
    assert with_defaults(read) == shown(config)
    assert dump(with_defaults(read)) == text


def shown(config):
    """The sync period of the mode, if nobody set it, is written as its default."""
    name = backends.mode(config.mode).section
    section = getattr(config, name)
    section = msgspec.structs.replace(section, sync_period=section.sync_period or SYNC_PERIOD)
    return msgspec.structs.replace(config, **{name: section})


VALUES = {
    "bool": st.sampled_from(["true", "false"]),
    "int": st.sampled_from(["0", "1", "14", "300", "0x10"]),
    "level": st.sampled_from(["0", "4"]),
    "float": st.sampled_from(["0", "0.5", "7", "1e3"]),
    "duration": st.sampled_from(["0", "1ns", "1s", "1h2m3.5s", "30s"]),
    "size": st.sampled_from(["0", "64Ki"]),
    "list": st.sampled_from(["", "10.0.0.0/8", "10.0.0.0/8,fd00::/8", "primary"]),
    "gates": st.sampled_from(["AllAlpha=true", "NodeSwap=true,NFTablesNetlink=false", ""]),
    "vmodule": st.sampled_from(["", "a=1,b*=2"]),
    "address": st.sampled_from(["", "::", "0.0.0.0", "10.0.0.1", "fd00::1"]),
    "listen": st.sampled_from(["", "0.0.0.0", "::1", "1.2.3.4:80", "[::]:1"]),
}
WORDS = {
    "proxy-mode": ["", "iptables", "ipvs", "nftables", "userspace"],
    "detect-local-mode": ["", "ClusterCIDR", "NodeCIDR"],
    "logging-format": ["text", "json"],
    "show-hidden-metrics-for-version": ["", "1.35"],
    "proxy-port-range": ["", "1000-2000"],
    "cluster-cidr": ["", "10.0.0.0/8", "10.0.0.0/8,fd00::/8"],
}
FIELDS = [flag for flag in known("linux").values() if flag.paths]


@st.composite
def command_lines(draw):
    chosen = draw(st.lists(st.sampled_from(FIELDS), unique_by=lambda flag: flag.name))
    chosen += [known("linux")[name] for name in ("healthz-port", "metrics-port") if draw(st.booleans())]
    words = st.sampled_from(["", "some-text", "0", "y"])
    values = [
        st.sampled_from(WORDS[flag.name]) if flag.name in WORDS else VALUES.get(flag.kind, words)
        for flag in chosen
    ]
    return [f"--{flag.name}={draw(value)}" for flag, value in zip(chosen, values, strict=True)]


@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def least(config):
    """The least time between two syncs in the configuration's mode."""
    return backends.mode(config.mode).min_sync_period(config)


@given(command_lines())
def test_the_written_file_means_what_the_flags_meant(tmp_path_factory, arguments):
    options = load(parse(arguments, "linux"), "linux")
    assume(not validate(options.config, "linux"))  # else nothing is written
    path = tmp_path_factory.mktemp("written") / "file"
    write(options.config, str(path))
    read = load(parse([f"--config={path}"], "linux"), "linux")
    assert read.config == shown(options.config)
    assert least(read.config) == least(options.config)
    assert read.config.healthz_address == options.config.healthz_address
    assert read.config.metrics_address == options.config.metrics_address
    assert read.unknown_fields == ()
    assert validate(read.config, "linux") == []


@pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables", "userspace"])
def test_pacing_nobody_set_still_adapts_when_read_back(mode, tmp_path):
    write(load({"proxy-mode": mode}, "linux").config, str(tmp_path / "file"))
    assert least(load({"config": str(tmp_path / "file")}, "linux").config) is None


def test_a_listener_that_is_off_stays_off(tmp_path):
    config = load(parse(["--healthz-port=0", "--metrics-bind-address="], "linux"), "linux").config
    write(config, str(tmp_path / "file"))
    read = load({"config": str(tmp_path / "file")}, "linux").config
    assert (read.healthz_address, read.metrics_address) == (None, None)


TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(string.printable, max_size=8)
INT32 = st.integers(-(2**31), 2**31 - 1)
SPAN = st.integers(1, 10**7).map(lambda n: Duration(n / 1000)) | st.integers(-1000, 10**9).filter(bool).map(
    Duration
)
SPAN_OR_0 = SPAN | st.just(Duration(0))
PERIODS = {"sync_period": st.none() | SPAN, "min_sync_period": st.none() | SPAN}
ROUTING = st.builds(LogRouting, st.booleans(), st.sampled_from(["0", "512", "64Ki", "1e3"]).map(Quantity))
LIST = st.none() | st.lists(TEXT, max_size=3).map(tuple)
CONFIGURATIONS = st.builds(
    KubeProxyConfiguration,
    feature_gates=st.dictionaries(TEXT, st.booleans(), max_size=3),
    client_connection=st.builds(ClientConnection, TEXT, TEXT, TEXT, st.floats(-1000, 1000, width=32), INT32),
    logging=st.builds(
        Logging,
        TEXT,
        SPAN.map(NanosecondDuration),
        st.integers(0, 2**32 - 1),
        st.lists(st.builds(VModule, TEXT, st.integers(0, 2**32 - 1)), max_size=2).map(tuple),
        st.builds(LogOptions, ROUTING, ROUTING),
    ),
    hostname_override=TEXT,
    bind_address=TEXT,
    healthz_bind_address=TEXT,
    metrics_bind_address=TEXT,
    bind_address_hard_fail=st.booleans(),
    enable_profiling=st.booleans(),
    show_hidden_metrics_for_version=TEXT,
    mode=st.sampled_from(["", "iptables", "ipvs", "nftables", "userspace", "kernelspace"]),
    iptables=st.builds(IPTables, INT32, st.booleans(), st.booleans(), **PERIODS),
    ipvs=st.builds(
        IPVS, **PERIODS, scheduler=TEXT, exclude_cidrs=LIST, strict_arp=st.booleans(),
        tcp_timeout=SPAN_OR_0, tcp_fin_timeout=SPAN_OR_0, udp_timeout=SPAN_OR_0,
    ),
    nftables=st.builds(NFTables, INT32, st.booleans(), **PERIODS),
    winkernel=st.builds(Winkernel, TEXT, TEXT, st.booleans(), TEXT, st.booleans()),
    detect_local_mode=TEXT,
    detect_local=st.builds(DetectLocal, TEXT, TEXT),
    cluster_cidr=TEXT,
    node_port_addresses=LIST,
    oom_score_adj=INT32,
    conntrack=st.builds(Conntrack, INT32, INT32, SPAN_OR_0, SPAN_OR_0, st.booleans(), SPAN_OR_0, SPAN_OR_0),
    config_sync_period=SPAN,
    port_range=TEXT,
    windows_run_as_service=st.booleans(),
)  # fmt: skip


def test_the_file_is_written(tmp_path):
    path = tmp_path / "out.yaml"
    path.write_text("what was there before, and is longer than nothing")
    write(DEFAULTS, str(path))
    assert path.read_text() == STANDARD


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--write-config-to: .*/none/out: No such file"):
        write(DEFAULTS, str(tmp_path / "none" / "out"))
