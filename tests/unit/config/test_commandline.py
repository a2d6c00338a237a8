import pytest

from kubeproxy.config import ConfigError
from kubeproxy.config.commandline import help_text, parse
from kubeproxy.config.durations import Duration
from kubeproxy.config.flags import FLAGS, known
from kubeproxy.config.kinds import KINDS, show
from kubeproxy.config.types import VModule

SAMPLES = {
    "bool": ("true", True),
    "int": ("7", 7),
    "level": ("4", 4),
    "float": ("2.5", 2.5),
    "duration": ("1m30s", Duration(90)),
    "size": ("64Ki", "64Ki"),
    "string": ("some text", "some text"),
    "list": ("a,b", ("a", "b")),
    "paths": ("/etc/a,b", ("/etc/a,b",)),
    "gates": ("A=true,B=false", {"A": True, "B": False}),
    "vmodule": ("sync=4,nft*=5", (VModule("sync", 4), VModule("nft*", 5))),
    "address": ("fd00::1", "fd00::1"),
    "listen": ("[fd00::1]:80", "[fd00::1]:80"),
    "version": ("raw", "raw"),
}


def of(line, platform="linux"):
    return parse(line.split(), platform)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_takes_a_value_after_an_equals_sign(flag):
    text, value = SAMPLES[flag.kind]
    assert parse([f"--{flag.name}={text}"], "win32") == {flag.name: value}


@pytest.mark.parametrize("flag", [f for f in FLAGS if not KINDS[f.kind].bare], ids=lambda flag: flag.name)
def test_every_flag_with_a_value_takes_the_next_argument(flag):
    text, value = SAMPLES[flag.kind]
    assert parse([f"--{flag.name}", text], "win32") == {flag.name: value}


@pytest.mark.parametrize("flag", [f for f in FLAGS if KINDS[f.kind].bare], ids=lambda flag: flag.name)
def test_a_boolean_never_takes_the_next_argument(flag):
    assert list(parse([f"--{flag.name}", "--v=1"], "win32")) == [flag.name, "v"]
    with pytest.raises(ConfigError, match="a boolean is written --flag=false"):
        parse([f"--{flag.name}", "false"], "win32")


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("-v2", {"v": 2}),
        ("-v 2", {"v": 2}),
        ("-v=2", {"v": 2}),
        ("--v=2", {"v": 2}),
        ("--v 2", {"v": 2}),
        ("-h", {"help": True}),
        ("-hv3", {"help": True, "v": 3}),
        ("--cluster_cidr 10.0.0.0/8", {"cluster-cidr": "10.0.0.0/8"}),
        ("--cluster_cidr=10.0.0.0/8", {"cluster-cidr": "10.0.0.0/8"}),
        ("--cluster-cidr=a_b=c", {"cluster-cidr": "a_b=c"}),
        ("--cluster-cidr --v", {"cluster-cidr": "--v"}),
        ("--masquerade-all=false", {"masquerade-all": False}),
        ("--masquerade-all=T", {"masquerade-all": True}),
        ("--masquerade-all --masquerade-all=0", {"masquerade-all": False}),
        ("--nodeport-addresses=a,b --nodeport-addresses c", {"nodeport-addresses": ("a", "b", "c")}),
        ("--nodeport-addresses=", {"nodeport-addresses": ()}),
        ("--feature-gates=A=1 --feature-gates=B=F,A=false", {"feature-gates": {"A": False, "B": False}}),
        ("--vmodule=a=1, --vmodule=b=2", {"vmodule": (VModule("a", 1), VModule("b", 2))}),
        ("--manifests a --manifests b", {"manifests": ("a", "b")}),
        ("--oom-score-adj=-5", {"oom-score-adj": -5}),
        ("--oom-score-adj -5", {"oom-score-adj": -5}),
        ("--oom-score-adj=0x10", {"oom-score-adj": 16}),
        ("--oom-score-adj=010", {"oom-score-adj": 8}),
        ("--bind-address=", {"bind-address": ""}),
        ("--healthz-bind-address=fd00::1", {"healthz-bind-address": "fd00::1"}),
        ("--healthz-bind-address=", {"healthz-bind-address": ""}),
        ("--version", {"version": "true"}),
        ("--version=raw", {"version": "raw"}),
        ("--version=false", {"version": ""}),
        ("--version=v1.36.2-x", {"version": "v1.36.2-x"}),
        ("--version=v1.36.0+eks.1", {"version": "v1.36.0+eks.1"}),
        ("--oom-score-adj=+1_0", {"oom-score-adj": 10}),
        ("--oom-score-adj=0_7", {"oom-score-adj": 7}),
        ("--oom-score-adj=-0b11", {"oom-score-adj": -3}),
        ("--kube-api-qps=1e3", {"kube-api-qps": 1000.0}),
        ("--kube-api-qps=.5", {"kube-api-qps": 0.5}),
        ('--nodeport-addresses="a",b', {"nodeport-addresses": ("a", "b")}),
        ('--nodeport-addresses="a,b",,"c""d"', {"nodeport-addresses": ("a,b", "", 'c"d')}),
        ("--nodeport-addresses=a,", {"nodeport-addresses": ("a", "")}),
        ('--nodeport-addresses=""', {"nodeport-addresses": ("",)}),
        ("--healthz-bind-address=::1:80", {"healthz-bind-address": "::1:80"}),
        ("--v=1 --", {"v": 1}),
        ("", {}),
    ],
)
def test_the_syntax_is_pflags(line, values):
    assert of(line) == values


def test_empty_arguments_are_passed_over():
    assert parse(["--v=1", ""], "linux") == {"v": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--proxy-mod=ipvs", "unknown flag: --proxy-mod (did you mean --proxy-mode?)"),
        ("--zzzz", "unknown flag: --zzzz"),
        ("--enable-dsr", "unknown flag: --enable-dsr (it exists on Windows only)"),
        ("--", None),
        ("--=5", "bad flag syntax: --=5"),
        ("---v", "bad flag syntax: ---v"),
        ("-x", "unknown shorthand flag: 'x' in -x"),
        ("-config=f", "unknown shorthand flag: 'c' in -config=f (did you mean --config?)"),
        ("--config", "flag needs an argument: --config"),
        ("-v", "flag needs an argument: --v"),
        ("run", '"kube-proxy" does not take any arguments, got ["run"]'),
        ("--v=1 a b", '"kube-proxy" does not take any arguments, got ["a" "b"]'),
        ("-- --v=1", '"kube-proxy" does not take any arguments, got ["--v=1"]'),
        ("-", '"kube-proxy" does not take any arguments, got ["-"]'),
        ("-vx", 'invalid argument "x" for "-v, --v" flag: must be a number of 0 or more that fits 31 bits'),
        ("--v=-1", 'invalid argument "-1" for "-v, --v" flag: must be a number of 0 or more that fits 31 bits'),
        ("--v=2147483648", 'invalid argument "2147483648" for "-v, --v" flag: must be a number of 0 or more that fits 31 bits'),
        ("--cleanup=maybe", 'invalid argument "maybe" for "--cleanup" flag: must be true or false'),
        ("--conntrack-min=1.5", 'invalid argument "1.5" for "--conntrack-min" flag: must be an integer'),
        ("--conntrack-min=2147483648", 'invalid argument "2147483648" for "--conntrack-min" flag: must fit 32 bits'),
        ("--version=v1.35.0-x", 'invalid argument "v1.35.0-x" for "--version" flag: "v1.35.0-x" must be a version of 1.36, which this program stands in for'),
        ("--version=v1.36-x", 'invalid argument "v1.36-x" for "--version" flag: "v1.36-x" is not a semantic version like v1.36.0-name'),
        ("--version=v1.36.01", 'invalid argument "v1.36.01" for "--version" flag: "v1.36.01" is not a semantic version like v1.36.0-name'),
        ('--nodeport-addresses=a"b', 'invalid argument "a"b" for "--nodeport-addresses" flag: a quote (") may only stand around an item, or doubled within such quotes'),
        ('--nodeport-addresses="a"b', 'invalid argument ""a"b" for "--nodeport-addresses" flag: a quote (") may only stand around an item, or doubled within such quotes'),
        ('--nodeport-addresses="a', 'invalid argument ""a" for "--nodeport-addresses" flag: a quote (") may only stand around an item, or doubled within such quotes'),
        ("--kube-api-qps=nan", 'invalid argument "nan" for "--kube-api-qps" flag: must fit a 32 bit float'),
        ("--kube-api-qps=fast", 'invalid argument "fast" for "--kube-api-qps" flag: must be a number'),
        ("--config-sync-period=5", 'invalid argument "5" for "--config-sync-period" flag: "5" is not a duration: the unit is missing (ns, us, ms, s, m or h)'),
        ("--bind-address=10.1.1.1:80", 'invalid argument "10.1.1.1:80" for "--bind-address" flag: "10.1.1.1:80" is not a valid IP address'),
        ("--healthz-bind-address=localhost", 'invalid argument "localhost" for "--healthz-bind-address" flag: "localhost" is not in a valid format (ip or ip:port)'),
        ("--healthz-bind-address=localhost:1", 'invalid argument "localhost:1" for "--healthz-bind-address" flag: "localhost" is not a valid IP address'),
        ("--metrics-bind-address=1.1.1.1:http", 'invalid argument "1.1.1.1:http" for "--metrics-bind-address" flag: "http" is not a valid number'),
        ("--feature-gates=A", 'invalid argument "A" for "--feature-gates" flag: malformed pair "A", expect string=bool'),
        ("--feature-gates=A=on", 'invalid argument "A=on" for "--feature-gates" flag: invalid value of A: "on" must be true or false'),
        ("--vmodule=sync", 'invalid argument "sync" for "--vmodule" flag: "sync" does not have the pattern=N format'),
        ("--vmodule=sync=x", 'invalid argument "sync=x" for "--vmodule" flag: verbosity in "sync=x" must be a number of 0 or more that fits 31 bits'),
        ("--log-json-info-buffer-size=big", 'invalid argument "big" for "--log-json-info-buffer-size" flag: "big" is not a size like 512, 2Ki or 3M'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_that_names_it(line, message):
    if message is None:
        assert of(line) == {}
        return
    with pytest.raises(ConfigError) as caught:
        of(line)
    assert caught.value.errors == (message,)


@pytest.mark.parametrize("name", ["oom-score-adj", "conntrack-min", "kube-api-qps", "v", "healthz-port"])
@pytest.mark.parametrize(
    "text",
    [
        " 5",
        "5 ",
        "5\n",
        "\t5",
        "\u00a05",
        "\u0665",
        "\uff15",
        "\u00b2",
        "_5",
        "5_",
        "1__0",
        "",
        " ",
        "+",
        "--5",
        "0x",
        "1 0",
    ],
)
def test_numbers_have_neither_blanks_nor_other_digits(name, text):
    with pytest.raises(ConfigError, match=f'for ".*--{name}" flag: must be'):
        parse([f"--{name}={text}"], "linux")


def test_a_blank_in_a_list_is_part_of_its_item():
    assert parse(["--nodeport-addresses=a, b"], "linux") == {"nodeport-addresses": ("a", " b")}
    assert parse(["--nodeport-addresses=a\nb"], "linux") == {"nodeport-addresses": ("a",)}


def test_windows_flags_exist_on_windows_only():
    only = {flag.name for flag in FLAGS if flag.windows}
    assert only == {
        "windows-service",
        "log-file",
        "network-name",
        "source-vip",
        "enable-dsr",
        "root-hnsendpoint-name",
        "forward-healthcheck-vip",
    }
    assert known("win32").keys() - known("linux").keys() == only


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_the_help_names_every_flag_with_its_default(platform):
    text = help_text(platform)
    words = " ".join(text.split())
    for flag in FLAGS:
        assert (f"  {flag.usage}\n" in text) is (flag.name in known(platform))
    assert "-v, --v Level" in text
    assert "(default 15m0s)" in words
    assert "Deprecated: use --healthz-bind-address." in words
    assert max(map(len, text.splitlines())) <= 100


def test_names_and_letters_are_used_once():
    names = [flag.name for flag in FLAGS]
    letters = [flag.short for flag in FLAGS if flag.short]
    assert len(set(names)) == len(names)
    assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("kind", SAMPLES)
def test_what_is_shown_can_be_read(kind):
    text, value = SAMPLES[kind]
    assert KINDS[kind].parse(show(value)) == value == KINDS[kind].parse(text)
