"""The node's rules in the form of the oracle's `.rules` files: read from the kernel, and loaded into it.

The form (`tests/oracle/README.md`): `# iptables-save TABLE` for mangle, nat and filter, first IPv4 then IPv6; chain
declarations sorted, without counters; the rules chain by chain in alphabetical order, in the kernel's order within a chain, except in
the chains where the order of Services says nothing. Loading gives tests the state the reference leaves on a node.
"""

import re
from collections.abc import Iterator

from tests.lab import kernel
from tests.lab.topology import Lab

TABLES = ("mangle", "nat", "filter")
UNORDERED = {"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"}


def programs(variant: str = "") -> dict[str, str]:
    """The iptables programs of each family: variant "" is the machine's default, else "nft" or "legacy"."""
    middle = f"-{variant}" if variant else ""
    return {"iptables": f"iptables{middle}", "ip6tables": f"ip6tables{middle}"}


def read_iptables(lab: Lab, variant: str = "") -> str:
    """The node's iptables rules, comparable with `expected/iptables/NAME.rules`."""
    sections = []
    for family, program in programs(variant).items():
        saved = lab.run("node", f"{program}-save")
        for table in TABLES:
            body = re.search(rf"^\*{table}\n(.*?)^COMMIT$", saved, flags=re.MULTILINE | re.DOTALL)
            sections.append(f"# {family}-save {table}\n{_normal(body[1]) if body else ''}")
    return "\n".join(sections)


def _normal(saved: str) -> str:
    """One table of `iptables-save` without counters and needless order."""
    declared, chains = [], dict[str, list[str]]()
    for line in saved.splitlines():
        if line.startswith(":"):
            declared.append(re.sub(r" \[\d+:\d+\]$", "", line))
        else:
            chains.setdefault(line.split(" ", 2)[1], []).append(line)
    for name in UNORDERED & chains.keys():
        chains[name].sort(key=lambda rule: (rule.endswith("-j KUBE-NODEPORTS"), rule))
    rules = (rule for name in sorted(chains) for rule in chains[name])
    return "".join(f"{line}\n" for line in [*sorted(declared), *rules])


def load_iptables(lab: Lab, rules: str, variant: str = "") -> None:
    """Loads the text of an `expected/iptables/NAME.rules` file into the node."""
    kernel.add_nfacct(lab.name("node"), *sorted(set(re.findall(r"--nfacct-name +(\S+)", rules))))
    for family, program in programs(variant).items():
        tables = "".join(f"*{table}\n{body}COMMIT\n" for table, body in _tables(rules, family))
        lab.run("node", f"{program}-restore", given=tables)


def _tables(rules: str, family: str) -> Iterator[tuple[str, str]]:
    for section in re.split(r"^# ", rules, flags=re.MULTILINE):
        title, _, body = section.partition("\n")
        program, _, table = title.partition(" ")
        if program == f"{family}-save":
            yield table, re.sub(r"^(:.*)$", r"\1 [0:0]", body.strip() + "\n", flags=re.MULTILINE)


def load_nftables(lab: Lab, rules: str) -> None:
    """Loads the text of an `expected/nftables/NAME.rules` file into the node."""
    lab.run("node", "nft", "-f", "-", given=rules)
