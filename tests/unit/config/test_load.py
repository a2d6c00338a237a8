import pytest

from kubeproxy import backends
from kubeproxy.config import ConfigError
from kubeproxy.config.commandline import parse
from kubeproxy.config.defaults import DEFAULTS, with_platform_defaults, with_port
from kubeproxy.config.flags import FLAGS, get
from kubeproxy.config.kinds import KINDS
from kubeproxy.config.load import load
from kubeproxy.config.types import KubeProxyConfiguration, VModule

HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def of(*arguments, platform="linux"):
    return load(parse(arguments, platform), platform)


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "kube-proxy.conf"
        path.write_text(HEADER + text)
        return f"--config={path}"

    return write


def sample(flag):
    """A value that is not the flag's default, as text."""
    by_kind = {
        "bool": "false" if flag.default_text == "true" else "true",
        "int": "7",
        "level": "4",
        "float": "2.5",
        "duration": "1m30s",
        "size": "64Ki",
        "string": "other",
        "list": "a,b",
        "gates": "NFTablesNetlink=false",
        "vmodule": "sync=4",
        "address": "9.9.9.9",
        "listen": "9.9.9.9:99",
    }
    return by_kind[flag.kind]


@pytest.mark.parametrize("section", ["iptables", "ipvs", "nftables"])
@pytest.mark.parametrize("flag", [f for f in FLAGS if f.paths], ids=lambda flag: flag.name)
def test_every_flag_lands_in_its_field_and_nowhere_else(flag, section):
    mode = () if flag.name == "proxy-mode" else (f"--proxy-mode={section}",)
    before = of(*mode, platform="win32").config
    after = of(*mode, f"--{flag.name}={sample(flag)}", platform="win32").config
    path = flag.config if isinstance(flag.config, str) else flag.config.get(section)
    if path is None:
        assert after == before
        return
    assert get(after, path) == KINDS[flag.kind].parse(sample(flag))
    assert get(after, path) != get(before, path)
    others = {p for f in FLAGS for p in f.paths} - {path}
    assert {p for p in others if get(after, p) != get(before, p)} == set()


@pytest.mark.parametrize(
    ("flag", "attribute", "value"),
    [
        ("--write-config-to=f", "write_config_to", "f"),
        ("--cleanup", "cleanup", True),
        ("--cleanup-force", "cleanup_force", True),
        ("--init-only", "init_only", True),
        ("--master=http://a", "master", "http://a"),
        ("--userspace-listen", "userspace_listen", True),
        ("--manifests=a", "manifests", ("a",)),
        ("--journal=a", "journal", "a"),
        ("--journal-size=3Mi", "journal_bytes", 3 * 2**20),
    ],
)
def test_every_action_lands_in_the_options_with_and_without_a_file(flag, attribute, value, file):
    assert getattr(of(), attribute) != value
    assert getattr(of(flag), attribute) == value
    assert getattr(of(flag, file("")), attribute) == value


def test_the_variant_to_clean_up(file):
    assert of("--cleanup").cleanup_variant == ""
    assert of("--cleanup", "--cleanup-variant=").cleanup_variant == ""
    assert of("--cleanup-variant=nf_tables", "--cleanup", file("")).cleanup_variant == "nf_tables"
    with pytest.raises(ConfigError, match=r"^--cleanup-variant: 'nft' is neither legacy nor nf_tables$"):
        of("--cleanup", "--cleanup-variant=nft")
    with pytest.raises(ConfigError, match=r"^--cleanup-variant needs --cleanup$"):
        of("--cleanup-variant=legacy")


def test_a_journal_has_some_size():
    with pytest.raises(ConfigError, match=r"^--journal-size: 1023Ki is less than 1Mi$"):
        of("--journal-size=1023Ki")


def test_every_flag_has_a_purpose():
    without_field = {f.name for f in FLAGS if not f.paths}
    assert without_field == {
        "config", "write-config-to", "cleanup", "init-only", "version", "help", "master", "healthz-port",
        "metrics-port", "manifests", "userspace-listen", "cleanup-force", "cleanup-variant", "journal", "journal-size", "status-page", "boot-id-file",
        "machine-id-file", "log-file",
    }  # fmt: skip


def test_nothing_said_is_the_default_for_the_platform():
    options = of()
    assert options.config == with_platform_defaults(DEFAULTS, "linux")
    assert (options.config.mode, options.config.detect_local_mode) == ("iptables", "ClusterCIDR")
    assert options.warnings == ()


def test_an_empty_file_is_the_default_too(file):
    assert of(file("")).config == of().config


class TestPrecedence:
    FILE = "logging:\n  format: json\n  verbosity: 10\n  flushFrequency: 1s\n  vmodule:\n  - {filePattern: foo, verbosity: 6}\nhostnameOverride: FromFile\nmode: ipvs\n"

    def test_logging_flags_win_over_the_file(self, file):
        logging = of("-v=7", "--logging-format=text", file(self.FILE)).config.logging
        assert (logging.verbosity, logging.format, logging.flush_frequency) == (7, "text", 1)

    def test_patterns_of_the_flag_come_before_the_files(self, file):
        config = of("--vmodule", "goo=8", file(self.FILE)).config
        assert config.logging.vmodule == (VModule("goo", 8), VModule("foo", 6))

    @pytest.mark.parametrize(
        "flag", [f for f in FLAGS if f.paths and not f.always], ids=lambda flag: flag.name
    )
    def test_other_flags_are_ignored_with_a_warning_that_names_them(self, flag, file):
        options = of(f"--{flag.name}={sample(flag)}", file(self.FILE), platform="win32")
        assert options.config == of(file(self.FILE), platform="win32").config
        assert options.warnings == (f"ignored because --config is given: --{flag.name}",)

    def test_the_host_name_of_the_flag_wins(self, file):
        assert of("--hostname-override=bar", file(self.FILE)).config.hostname_override == "bar"
        assert of("--hostname-override=", file(self.FILE)).config.hostname_override == "FromFile"


@pytest.mark.parametrize(("given", "name"), [("bar", "bar"), ("  Bar ", "bar"), ("", "")])
def test_the_host_name_is_trimmed_and_lowered(given, name):
    assert of(f"--hostname-override={given}").config.hostname_override == name


def test_a_blank_host_name_is_refused():
    with pytest.raises(ConfigError, match="empty hostname-override is invalid"):
        of("--hostname-override=   ")


@pytest.mark.parametrize(
    ("arguments", "healthz", "metrics"),
    [
        ("", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("--bind-address=9.8.7.6", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("--bind-address=::", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("--bind-address=fd00::1", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("--healthz-bind-address=::1:80", "[::1:80]:10256", "127.0.0.1:10249"),
        ("--bind-address=fd00::1 --metrics-bind-address=1.1.1.1", "0.0.0.0:10256", "1.1.1.1:10249"),
        (
            "--healthz-bind-address=1.2.3.4 --metrics-bind-address=fd00:1::6",
            "1.2.3.4:10256",
            "[fd00:1::6]:10249",
        ),
        ("--healthz-bind-address=1.2.3.4 --healthz-port=12345", "1.2.3.4:12345", "127.0.0.1:10249"),
        ("--healthz-bind-address=fd00:1::5 --healthz-port=12345", "[fd00:1::5]:12345", "127.0.0.1:10249"),
        ("--healthz-bind-address=1.2.3.4:1 --healthz-port=2", "1.2.3.4:1", "127.0.0.1:10249"),
        ("--metrics-bind-address=[fd00::1]:1 --metrics-port=2", "0.0.0.0:10256", "[fd00::1]:1"),
        ("--healthz-port=0", "", "127.0.0.1:10249"),
        ("--metrics-port=0", "0.0.0.0:10256", ""),
        ("--healthz-bind-address=1.2.3.4:1 --healthz-port=0", "", "127.0.0.1:10249"),
        ("--healthz-bind-address= --metrics-bind-address=", "", ""),
    ],
)
def test_addresses_and_deprecated_ports_combine(arguments, healthz, metrics):
    config = of(*arguments.split()).config
    assert (config.healthz_bind_address, config.metrics_bind_address) == (healthz, metrics)


@pytest.mark.parametrize(
    ("text", "healthz", "metrics"),
    [
        ("", "0.0.0.0:10256", "127.0.0.1:10249"),
        ('bindAddress: "::"', "[::]:10256", "[::1]:10249"),
        ("healthzBindAddress: 1.2.3.4\nmetricsBindAddress: fd00::1", "1.2.3.4:10256", "[fd00::1]:10249"),
        ('healthzBindAddress: ""\nmetricsBindAddress: ""', "0.0.0.0:10256", "127.0.0.1:10249"),
        ("healthzBindAddress: 1.2.3.4:5", "1.2.3.4:5", "127.0.0.1:10249"),
        ("healthzBindAddress: 0.0.0.0:0\nmetricsBindAddress: '[::1]:0'", "", ""),
        ("healthzBindAddress: nonsense", "nonsense", "127.0.0.1:10249"),
    ],
)
def test_addresses_in_the_file_get_their_ports(text, healthz, metrics, file):
    config = of("--healthz-port=0", "--metrics-port=0", file(text)).config
    assert (config.healthz_bind_address, config.metrics_bind_address) == (healthz, metrics)


@pytest.mark.parametrize(
    ("address", "joined"),
    [("1.2.3.4", "1.2.3.4:99"), ("1.2.3.4:5", "1.2.3.4:5"), ("fd00::1", "[fd00::1]:99"), ("[fd00::1]:5", "[fd00::1]:5"),
     ("abc", "abc"), ("[fd00::1]", "[fd00::1]"), ("", "")],
)  # fmt: skip
def test_a_port_is_added_to_a_bare_address_only(address, joined):
    assert with_port(address, 99) == joined


def periods(config):
    """The period and the least period of the configuration's mode."""
    mode = backends.mode(config.mode)
    return mode.sync_period(config), mode.min_sync_period(config)


class TestPeriods:
    """Which section the period flags reach, and that unset can be told from set."""

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [("", (1, 2)), ("iptables", (1, 2)), ("userspace", (1, 2)), ("nftables", (1, 2)), ("ipvs", (3, 4))],
    )
    def test_the_flags_of_the_modes_section_count(self, mode, expected):
        flags = "--iptables-sync-period=1s --iptables-min-sync-period=2s --ipvs-sync-period=3s --ipvs-min-sync-period=4s"
        config = of(f"--proxy-mode={mode}", *flags.split()).config
        assert periods(config) == expected

    @pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables", "userspace"])
    def test_nobody_said_anything(self, mode, file):
        for options in (of(f"--proxy-mode={mode}"), of(file(f"mode: {mode}"))):
            assert periods(options.config) == (30, None)

    @pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables"])
    def test_zero_is_the_same_as_unset_for_the_least_and_an_error_later_for_the_other(self, mode, file):
        name = "ipvs" if mode == "ipvs" else "iptables"
        config = of(f"--proxy-mode={mode}", f"--{name}-min-sync-period=0", f"--{name}-sync-period=0").config
        assert periods(config) == (0, None)
        config = of(file(f"mode: {mode}\n{mode}: {{minSyncPeriod: 0s, syncPeriod: 0s}}")).config
        assert periods(config) == (30, None)

    @pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables"])
    def test_the_file_sets_the_modes_section(self, mode, file):
        sections = "".join(
            f"{s}: {{minSyncPeriod: {n}s, syncPeriod: 1{n}s}}\n"
            for s, n in (("iptables", 1), ("ipvs", 2), ("nftables", 3))
        )
        config = of(file(f"mode: {mode}\n{sections}")).config
        n = ("iptables", "ipvs", "nftables").index(mode) + 1
        assert periods(config) == (10 + n, n)


@pytest.mark.parametrize(
    ("mode", "iptables", "nftables"),
    [("iptables", True, False), ("ipvs", True, False), ("userspace", True, False), ("nftables", False, True)],
)
def test_masquerade_all_reaches_the_modes_section(mode, iptables, nftables):
    config = of(f"--proxy-mode={mode}", "--masquerade-all").config
    assert (config.iptables.masquerade_all, config.nftables.masquerade_all) == (iptables, nftables)
    assert backends.mode(config.mode).masquerade_all(config) is True


class TestPlatformDefaults:
    @pytest.mark.parametrize(
        ("mode", "given", "addresses"),
        [
            ("nftables", None, ("primary",)),
            ("nftables", (), ("primary",)),
            ("nftables", ("10.0.0.0/8",), ("10.0.0.0/8",)),
            ("iptables", None, None),
            ("ipvs", (), ()),
        ],
    )
    def test_node_port_addresses_on_linux(self, mode, given, addresses):
        config = with_platform_defaults(KubeProxyConfiguration(mode=mode, node_port_addresses=given), "linux")
        assert config.node_port_addresses == addresses

    def test_what_is_set_stays(self):
        config = KubeProxyConfiguration(mode="ipvs", detect_local_mode="NodeCIDR")
        assert with_platform_defaults(config, "linux") == config

    def test_windows(self):
        config = with_platform_defaults(KubeProxyConfiguration(), "win32")
        assert (config.mode, config.winkernel.root_hns_endpoint_name, config.detect_local_mode) == (
            "kernelspace",
            "cbr0",
            "",
        )


class TestWarnings:
    def test_deprecated_ports(self):
        assert of("--healthz-port=0", "--metrics-port=0").warnings == (
            "--healthz-port is deprecated: use --healthz-bind-address",
            "--metrics-port is deprecated: use --metrics-bind-address",
        )

    def test_a_port_that_loses(self):
        assert (
            "--healthz-port=5 has no effect: the address 0.0.0.0:10256 already has a port"
            in of("--healthz-port=5").warnings
        )
        assert len(of("--healthz-bind-address=1.1.1.1", "--healthz-port=5").warnings) == 1

    def test_lenient_reading_names_the_fields(self, file):
        flag = file("clusterCidr: 10.0.0.0/8\nfoo: 1\nmode: ipvs\nmode: iptables\n")
        options, path = of(flag), flag.partition("=")[2]
        assert options.unknown_fields == (
            f'{path}: ignored unknown field "clusterCidr"; did you mean "clusterCIDR"?',
            f'{path}: ignored unknown field "foo"',
        )
        assert options.warnings == (f'{path}: key "mode" is given twice, again in line 6; the last counts',)

    def test_gates(self, file):
        assert of("--feature-gates=NodeSwap=true").warnings == (
            "feature gate NodeSwap is not kube-proxy's: true has no effect here",
        )
        assert len(of(file("featureGates: {WinDSR: true, SidecarContainers: false}")).warnings) == 2

    def test_listening_in_another_mode(self):
        assert of("--userspace-listen").warnings == ("--userspace-listen has no effect in iptables mode",)
        assert of("--userspace-listen", "--proxy-mode=userspace").warnings == ()


def test_flags_are_listed_with_values_and_defaults():
    flags = of(
        "-v3", "--masquerade-all", "--nodeport-addresses=a,b", "--feature-gates=NFTablesNetlink=false"
    ).flags
    assert flags.keys() == {flag.name for flag in FLAGS if not flag.windows}
    assert (flags["v"], flags["masquerade-all"], flags["nodeport-addresses"]) == ("3", "true", "a,b")
    assert (flags["feature-gates"], flags["conntrack-min"], flags["cleanup"]) == (
        "NFTablesNetlink=false",
        "131072",
        "false",
    )
    assert (flags["config-sync-period"], flags["ipvs-udp-timeout"], flags["kubeconfig"]) == (
        "15m0s",
        "0s",
        "",
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--config: .*/missing: No such file"):
        of(f"--config={tmp_path}/missing")
    with pytest.raises(ConfigError, match="Is a directory"):
        of(f"--config={tmp_path}")
