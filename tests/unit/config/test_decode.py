import json
from pathlib import Path

import pytest

from kubeproxy.config import ConfigError
from kubeproxy.config.decode import decode
from kubeproxy.config.defaults import DEFAULTS, with_defaults
from kubeproxy.config.durations import Duration, Quantity
from kubeproxy.config.types import (
    IPVS,
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

D = Duration
HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

FULL = """
featureGates: {LoggingAlphaOptions: true}
bindAddress: %s
bindAddressHardFail: true
clientConnection: {acceptContentTypes: abc, burst: 100, contentType: json, kubeconfig: /path/to/kubeconfig, qps: 7.5}
clusterCIDR: 10.244.0.0/16,fd00:1::0/64
configSyncPeriod: 15s
conntrack:
  maxPerCore: 2
  min: 1
  tcpBeLiberal: true
  tcpCloseWaitTimeout: 10s
  tcpEstablishedTimeout: 20s
  udpStreamTimeout: 30s
  udpTimeout: 250ms
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: cbr0, interfaceNamePrefix: veth}
enableProfiling: true
healthzBindAddress: 1.2.3.4:12345
hostnameOverride: foo
iptables: {localhostNodePorts: false, masqueradeAll: true, masqueradeBit: 17, minSyncPeriod: 10s, syncPeriod: 1m0s}
ipvs:
  excludeCIDRs: [10.20.30.40/16, "fd00:1::0/64"]
  minSyncPeriod: 10s
  scheduler: rr
  strictARP: true
  syncPeriod: 60s
  tcpFinTimeout: 1s
  tcpTimeout: 2s
  udpTimeout: 3s
nftables: {masqueradeAll: true, masqueradeBit: 18, minSyncPeriod: 10s, syncPeriod: 60s}
logging:
  flushFrequency: 1s
  format: json
  verbosity: 10
  vmodule: [{filePattern: foo.go, verbosity: 6}]
  options: {json: {infoBufferSize: 64Ki, splitStream: true}, text: {infoBufferSize: 0}}
metricsBindAddress: "[fd00:2::5]:23456"
mode: ipvs
nodePortAddresses: [primary]
oomScoreAdj: 17
portRange: "2-7"
showHiddenMetricsForVersion: "1.35"
windowsRunAsService: true
winkernel: {enableDSR: true, forwardHealthCheckVip: true, networkName: net, rootHnsEndpointName: r, sourceVip: 1.1.1.1}
"""


def yaml(text, header=HEADER):
    return decode((header + text).encode(), "kube-proxy.yaml")


def refused(text, header=HEADER):
    with pytest.raises(ConfigError) as caught:
        yaml(text, header)
    (error,) = caught.value.errors
    assert "\n" not in error
    assert error.startswith("kube-proxy.yaml: ")
    return error.removeprefix("kube-proxy.yaml: ")


@pytest.mark.parametrize(
    ("written", "bind"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("9.8.7.6", "9.8.7.6"),
        ('"::"', "::"),
        ('"[::]"', "[::]"),
        ("::0", "::0"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_every_field_lands(written, bind):
    config, doubts = yaml(FULL % written)
    assert doubts == ()
    assert config == KubeProxyConfiguration(
        feature_gates={"LoggingAlphaOptions": True},
        bind_address=bind,
        bind_address_hard_fail=True,
        client_connection=ClientConnection("/path/to/kubeconfig", "abc", "json", 7.5, 100),
        cluster_cidr="10.244.0.0/16,fd00:1::0/64",
        config_sync_period=D(15),
        conntrack=Conntrack(2, 1, D(20), D(10), True, D(0.25), D(30)),
        detect_local_mode="BridgeInterface",
        detect_local=DetectLocal("cbr0", "veth"),
        enable_profiling=True,
        healthz_bind_address="1.2.3.4:12345",
        hostname_override="foo",
        iptables=IPTables(17, True, False, D(60), D(10)),
        ipvs=IPVS(D(60), D(10), "rr", ("10.20.30.40/16", "fd00:1::0/64"), True, D(2), D(1), D(3)),
        nftables=NFTables(18, True, D(60), D(10)),
        logging=Logging(
            "json",
            NanosecondDuration(1),
            10,
            (VModule("foo.go", 6),),
            LogOptions(LogRouting(True, Quantity("64Ki")), LogRouting()),
        ),
        metrics_bind_address="[fd00:2::5]:23456",
        mode="ipvs",
        node_port_addresses=("primary",),
        oom_score_adj=17,
        port_range="2-7",
        show_hidden_metrics_for_version="1.35",
        windows_run_as_service=True,
        winkernel=Winkernel("net", "1.1.1.1", True, "r", True),
    )


def test_a_file_with_nothing_but_its_kind_is_the_default():
    config, doubts = yaml("")
    assert (with_defaults(config), doubts) == (DEFAULTS, ())


KUBEADM = """
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
featureGates: null
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0, vmodule: null}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"""


def test_the_zeros_and_nulls_of_kubeadms_file_are_defaults():
    config, doubts = yaml(KUBEADM)
    assert doubts == ()
    plain, _ = yaml(
        "clusterCIDR: 10.244.0.0/16\nclientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}\n"
    )
    assert with_defaults(config) == with_defaults(plain)


def test_zero_is_kept_where_it_means_leave_the_kernels():
    config, _ = yaml(
        "conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\noomScoreAdj: 0\niptables: {masqueradeBit: 0, localhostNodePorts: false}"
    )
    config = with_defaults(config)
    assert config.conntrack == Conntrack(0, 0, D(0), D(0))
    assert (config.oom_score_adj, config.iptables.masquerade_bit, config.iptables.localhost_node_ports) == (
        0,
        0,
        False,
    )


def test_json_is_read_too():
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "conntrack": {"min": 5},
    }
    config, doubts = decode(json.dumps(document, indent="\t").encode(), "c.json")
    assert (config.mode, config.conntrack.min, doubts) == ("nftables", 5, ())


def test_yaml_may_begin_with_a_brace():
    config, _ = yaml(
        "", "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration, mode: ipvs}"
    )
    assert config.mode == "ipvs"


@pytest.mark.parametrize(
    ("text", "doubts"),
    [
        ("masqueradeAll: true", ['unknown field "masqueradeAll"; did you mean "iptables.masqueradeAll" or "nftables.masqueradeAll"?']),
        ("foo: null", ['unknown field "foo"']),
        ("clusterCidr: 10.0.0.0/8", ['unknown field "clusterCidr"; did you mean "clusterCIDR"?']),
        ("ipvs: {excludeCIDR: []}", ['unknown field "ipvs.excludeCIDR"; did you mean "ipvs.excludeCIDRs"?']),
        ("scheduler: lc", ['unknown field "scheduler"; did you mean "ipvs.scheduler"?']),
        ("syncPeriod: 1s", ['unknown field "syncPeriod"']),
        ("iptables: {bit: 3, masqueradeBit: 3}\nipvs: {ipSet: {hashSize: 1}}", ['unknown field "iptables.bit"', 'unknown field "ipvs.ipSet"']),
        ("logging: {vmodule: [{filePattern: a, verbosity: 1, x: 1}], options: {json: {z: 1}}}",
         ['unknown field "logging.vmodule[0].x"', 'unknown field "logging.options.json.z"']),
        ("mode: ipvs\nmode: nftables", ['key "mode" is given twice, again in line 4; the last counts']),
        ("iptables:\n  masqueradeBit: 1\n  masqueradeBit: 2\nbar: 1", ['key "iptables.masqueradeBit" is given twice, again in line 5; the last counts', 'unknown field "bar"']),
        ("MODE: ipvs", ['unknown field "MODE"; did you mean "mode"?']),
    ],
)  # fmt: skip
def test_unknown_fields_and_keys_given_twice_are_named_and_the_rest_counts(text, doubts):
    config, found = yaml(text + "\noomScoreAdj: 5\n")
    assert list(found) == doubts
    assert config.oom_score_adj == 5


def test_the_last_of_equal_keys_counts():
    assert yaml("mode: ipvs\nmode: nftables")[0].mode == "nftables"
    twice = '{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","mode":"a","mode":"b"}'
    config, doubts = decode(twice.encode(), "c.json")
    assert (config.mode, doubts) == ("b", ('key "mode" is given twice; the last counts',))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("oomScoreAdj: high", "oomScoreAdj: expected int, got str"),
        ("conntrack: {min: 1.5}", "conntrack.min: expected int, got float"),
        ("conntrack: {min: 3000000000}", "conntrack.min: expected int <= 2147483647"),
        ("bindAddress: 5", "bindAddress: expected str, got int"),
        ("iptables: {masqueradeAll: 1}", "iptables.masqueradeAll: expected bool, got int"),
        ("iptables: {masqueradeAll: 'true'}", "iptables.masqueradeAll: expected bool, got str"),
        ("iptables: {syncPeriod: 30}", "iptables.syncPeriod: expected a duration like 30s in quotes, got 30"),
        ("iptables: {syncPeriod: soon}", 'iptables.syncPeriod: "soon" is not a duration like 30s, 1h2m3s or 250ms'),
        ("conntrack: {udpTimeout: 1d}", 'conntrack.udpTimeout: "1d" is not a duration: unknown unit "d" (use ns, us, ms, s, m or h)'),
        ("nodePortAddresses: primary", "nodePortAddresses: expected array | null, got str"),
        ("nodePortAddresses: [1]", "nodePortAddresses[0]: expected str, got int"),
        ("featureGates: {A: 'yes'}", "featureGates[...]: expected bool, got str"),
        ("ipvs: fast", "ipvs: expected object, got str"),
        ("logging: {verbosity: -1}", "logging.verbosity: expected int >= 0"),
        ("logging: {flushFrequency: true}", "logging.flushFrequency: expected a duration like 30s in quotes, got True"),
        ("logging: {options: {text: {infoBufferSize: much}}}", 'logging.options.text.infoBufferSize: "much" is not a size like 512, 2Ki or 3M'),
        ("logging: {vmodule: [{verbosity: 1}]}", "logging.vmodule[0]: missing required field filePattern"),
        ("masqueradeAll: true\noomScoreAdj: high", "oomScoreAdj: expected int, got str"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_an_error_that_names_the_field(text, error):
    assert refused(text) == error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "Twas bryllyg, and ye slythy toves",
            "line 4, column 1: while scanning a simple key: could not find expected ':'",
        ),
        ("bindAddress: ::", "mapping values are not allowed in this context"),
        ("mode: [", "line 4, column 1"),
        ("mode: !!int x", "line 3, column 7: mode: 'x' is not a !!int"),
        ("mode: .inf", "line 3, column 7: mode: .inf is not a number that JSON can express"),
        ("mode: \x01", "characters are not allowed"),
        ("nodePortAddresses: &a [*a]", "line 3, column 24: nodePortAddresses[0]: anchor 'a' contains itself"),
        ("bindAddress: " + "[" * 300 + "]" * 300, "nested more than 200 levels deep"),
        ("bindAddress: " + "[" * 5000 + "]" * 5000, "nest"),  # newer libraries refuse that themselves
        (
            "hostnameOverride: {{ .NodeName }}",
            "line 3, column 20: hostnameOverride: a key must be text, not a mapping (was a template not rendered?)",
        ),
        ("conntrack:\n  [1]: 2", "line 4, column 3: conntrack: a key must be text, not a list"),
        ("iptables: {null: 1}", "line 3, column 12: iptables: a key must be text, not null"),
        (
            "iptables: {: 1}",
            "line 3, column 12: iptables: while parsing a flow node: did not find expected node content",
        ),
        ("? {a: b}\n: 1", "line 3, column 3: a key must be text, not a mapping"),
        (
            "iptables: &x {masqueradeBit: 1}\nnftables: {*x : 1}",
            "line 4, column 12: nftables: a key must be text, not a mapping",
        ),
    ],
)
def test_broken_yaml_is_told_with_its_place(text, error):
    assert error in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"} x',
        '{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}\n{}',
        "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration} x",
        "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration}}",
    ],
)
def test_what_follows_the_object_is_refused_with_its_place(text):
    with pytest.raises(ConfigError, match=r"f: line [12], column \d+: "):
        decode(text.encode(), "f")


def test_numbers_and_booleans_as_keys_are_text():
    _, doubts = decode(f"{HEADER}1: a\nyes: b\n1.5: c\n2024-01-01: d\n'1': e".encode(), "f")
    unknown = [f'unknown field "{key}"' for key in ("1", "true", "1.5", "2024-01-01")]
    assert doubts == ('key "1" is given twice, again in line 7; the last counts', *unknown)


@pytest.mark.parametrize("number", ["100000", "1e5", "1E+5", "100000.0", "1_00000", "+1e5"])
def test_a_whole_number_may_be_written_in_many_ways(number):
    config, _ = decode(f"{HEADER}conntrack: {{min: {number}}}".encode(), "f")
    assert (config.conntrack.min, type(config.conntrack.min)) == (100_000, int)


@pytest.mark.parametrize("number", ["1.5", "1e-5", "1e300", ".inf", ".nan", "'1e5'"])
def test_what_is_no_whole_number_is_none(number):
    assert "conntrack.min: " in refused(f"conntrack: {{min: {number}}}")


def test_json_may_write_whole_numbers_with_an_exponent():
    head = '"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"'
    config, _ = decode(f'{{{head}, "conntrack": {{"min": 1e5}}, "oomScoreAdj": -5.0}}'.encode(), "f")
    assert (config.conntrack.min, config.oom_score_adj) == (100_000, -5)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "not a KubeProxyConfiguration: the file holds no mapping"),
        ("# nothing", "not a KubeProxyConfiguration: the file holds no mapping"),
        ("- a", "not a KubeProxyConfiguration: the file holds no mapping"),
        ("mode: ipvs", "kind: Required value: expected KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1"),
        ("kind: KubeProxyConfiguration", "apiVersion: Required value: expected KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1"),
        ("kind: KubeSchedulerConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1",
         'no kind "KubeSchedulerConfiguration" in version "kubeproxy.config.k8s.io/v1alpha1": expected KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1'),
        ("kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1",
         'no kind "KubeProxyConfiguration" in version "kubeproxy.config.k8s.io/v1": expected KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1'),
    ],
)  # fmt: skip
def test_the_kind_and_version_must_be_right(text, error):
    assert refused(text, header="") == error


def test_yaml_without_libyaml_is_the_same(monkeypatch):
    expected = yaml(FULL % "::0")
    monkeypatch.delattr("yaml.CBaseLoader", raising=False)
    assert yaml(FULL % "::0") == expected
    assert "mapping values are not allowed" in refused("bindAddress: ::")


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ConfigError, match="not UTF-8"):
        decode(b"mode: \xff", "f")


def test_what_only_yaml_1_1_takes_for_numbers_and_dates_is_text():
    config, _ = yaml("portRange: 2024-01-01\nbindAddress: 1:2:3:4:5:6:7:8\nhostnameOverride: 12:30:45.5\n")
    assert (config.port_range, config.bind_address, config.hostname_override) == (
        "2024-01-01",
        "1:2:3:4:5:6:7:8",
        "12:30:45.5",
    )


def test_anchors_and_merges_work():
    config, doubts = yaml(
        "iptables: &p\n  syncPeriod: 7s\n  masqueradeBit: 3\nnftables:\n  <<: *p\n  masqueradeBit: 4\n"
    )
    assert doubts == ()
    assert (config.nftables.sync_period, config.nftables.masquerade_bit) == (7, 4)


def test_flush_frequency_counts_nanoseconds_without_unit():
    assert yaml("logging: {flushFrequency: 1500000000}")[0].logging.flush_frequency == 1.5


def test_only_the_first_document_counts():
    config, doubts = yaml("mode: ipvs\n---\nkind: Service\nmode: nftables\n")
    assert (config.mode, doubts) == ("ipvs", ())


CASES = sorted((Path(__file__).parents[2] / "oracle" / "cases").glob("*.yaml"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_oracles_cases_are_read(case):
    config, doubts = decode(case.read_bytes(), case.name)
    assert isinstance(with_defaults(config), KubeProxyConfiguration)
    assert len(doubts) == (case.stem == "masquerade-all")
