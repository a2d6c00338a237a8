"""Writes the manual page kube-proxy(8) from the table of flags: `python -m tools.man > kube-proxy.8`.

The text between the flags is in this file; the flags, their defaults and their groups are those of -h, so the
page cannot differ from the program. The format is man(7) of groff.
"""

from collections.abc import Iterator

from kubeproxy import __version__
from kubeproxy.cli import COMMANDS, command
from kubeproxy.config.flags import Flag, known

ABOUT = (
    ("kube-proxy makes the Services of a Kubernetes cluster, or of a directory of manifests, reachable on this node. It watches Services and EndpointSlices and programs the kernel so that traffic to a Service address reaches an endpoint. It takes the flags and the configuration file of the kube-proxy of Kubernetes v1.36."),
    ("Only one instance can program a network namespace. The rules stay in the kernel when the program ends; the next start adopts them. To remove them, run it with --cleanup."),
    ("With --config, the file sets everything, and most other flags are ignored with a warning that names them."),
)  # fmt: skip
STATUS = (
    ("0", "The program ended as requested: after SIGTERM, --cleanup, --init-only, --write-config-to, --version or --help."),
    ("1", "An error occurred, or the program must be started again because its configuration file, its Node or the addresses of its Node changed."),
    ("130", "The program was interrupted (SIGINT)."),
)  # fmt: skip
FILES = (
    ("/etc/default/kube-proxy", "The arguments of the systemd unit."),
    ("/var/lib/kube-proxy/config.conf", "The configuration file in clusters that kubeadm made."),
    ("/run/xtables.lock", "The lock of the legacy iptables programs; shared with the kubelet and the network plugin."),
)  # fmt: skip
EXAMPLES = (
    ("With the configuration that kubeadm made, on a node of a cluster:", "kube-proxy --config /var/lib/kube-proxy/config.conf"),
    ("Without Kubernetes, on a directory of manifests:", "kube-proxy --manifests /etc/services.d --cluster-cidr 10.244.0.0/16"),
    ("Ask a running instance whether all rules are in the kernel, and for its metrics:", "curl http://localhost:10256/readyz\ncurl http://localhost:10249/metrics"),
)  # fmt: skip


def escaped(text: str) -> str:
    """Text as groff takes it: no character of it is a command, and dashes stay ASCII so that flags can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in {".", "'"} else line for line in text.split("\n"))


def page(platform: str = "linux") -> str:
    """The whole page.

    Args:
        platform: `sys.platform` of the systems it is for; some flags exist on one platform only.
    """
    return "\n".join(_lines(platform)) + "\n"


def _lines(platform: str) -> Iterator[str]:
    yield f'.TH KUBE\\-PROXY 8 "" "kubeproxy {__version__}" "System Administration"'
    yield from (".nh", ".ad l")  # names of flags and features stay whole
    yield from (".SH NAME", "kube\\-proxy \\- program the kernel so that Kubernetes Services are reachable")
    yield from (
        ".SH SYNOPSIS",
        ".B kube\\-proxy",
        ".RI [ flags ]",
        ".PP",
        ".B kube\\-proxy",
        '.RI command " [ options ]"',
        ".SH DESCRIPTION",
    )
    for number, paragraph in enumerate(ABOUT):
        yield from ([".PP"] if number else [])
        yield escaped(paragraph)
    yield ".SH OPTIONS"
    group = ""
    for flag in known(platform).values():
        if flag.group != group:
            group = flag.group
            yield f".SS {escaped(group)}"
        yield from _flag(flag)
    yield ".SH COMMANDS"
    yield escaped(
        "Without a command, the daemon runs. The commands answer questions and change nothing; each has --help."
    )
    yield from _terms(tuple((name, command.load(name).summary) for name in COMMANDS))
    yield from (".SH EXIT STATUS", *_terms(STATUS), ".SH FILES", *_terms(FILES), ".SH EXAMPLES")
    for intent, line in EXAMPLES:
        yield from (".PP", escaped(intent), ".PP", ".RS 4", ".nf", escaped(line), ".fi", ".RE")
    yield from (".SH SEE ALSO", ".BR iptables (8),", ".BR nft (8),", ".BR ipvsadm (8),", ".BR conntrack (8)")


def _flag(flag: Flag) -> Iterator[str]:
    names, _, value = (
        flag.usage.rpartition(" ") if not flag.usage.endswith(flag.name) else (flag.usage, "", "")
    )
    yield ".TP"
    yield f"\\fB{escaped(names)}\\fR" + (f" \\fI{escaped(value)}\\fR" if value else "")
    text = flag.help + (f" The default is {flag.default_text}." if flag.default_text else "")
    yield escaped(text + (f" Deprecated: {flag.deprecated}." if flag.deprecated else ""))


def _terms(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for term, text in rows:
        yield from (".TP", f"\\fB{escaped(term)}\\fR", escaped(text))


if __name__ == "__main__":
    print(page(), end="")
