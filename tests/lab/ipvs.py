"""What ipvs mode has on the node, in the form of the oracle's `.rules` files: read from the kernel, and loaded into it."""

import re

from tests.lab import rules
from tests.lab.topology import Lab


def state(lab: Lab) -> str:
    """Rules, virtual servers, sets and addresses; comparable with `expected/ipvs/NAME.rules` after `without_mangle`."""
    return without_mangle(f"{rules.read_iptables(lab)}\n{read(lab)}")


def without_mangle(text: str) -> str:
    """The reference leaves an empty table mangle; we do not read it at all."""
    return re.sub(r"^(# ip6?tables-save mangle\n)(?::.*\n)*", r"\1", text, flags=re.MULTILINE)


def read(lab: Lab) -> str:
    """The sections after those of iptables: virtual servers, sets, addresses of kube-ipvs0; each sorted."""
    servers = _together(lab.run("node", "ipvsadm", "-Sn"))
    sets = sorted(map(_comparable, lab.run("node", "ipset", "save").splitlines()))
    show = lab.run("node", "ip", "-o", "address", "show", "dev", "kube-ipvs0", "scope", "global", check=False)
    sections = (
        ("ipvsadm", servers),
        ("ipset", sets),
        ("kube-ipvs0", sorted(re.findall(r"(inet6? \S+)", show))),
    )
    return "\n".join(
        f"# {title}\n{''.join(f'{line}{chr(10)}' for line in lines)}" for title, lines in sections
    )


def load(lab: Lab, text: str) -> None:
    """Loads the text of an `expected/ipvs/NAME.rules` file into the node."""
    parts = re.split(r"^# (.*)\n", text, flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    sets = sections["ipset"].strip().splitlines()
    made = sorted(sets, key=lambda line: not line.startswith("create"))
    lab.run("node", "ipset", "restore", given="".join(f"{line}\n" for line in made))
    rules.load_iptables(lab, text[: text.index("# ipvsadm\n")])
    lab.run("node", "ipvsadm", "-R", given=f"{sections['ipvsadm'].strip()}\n")
    addresses = re.findall(r"^inet6? (\S+)$", sections["kube-ipvs0"], re.MULTILINE)
    lines = ["link add kube-ipvs0 type dummy", *(f"address add {a} dev kube-ipvs0" for a in addresses)]
    lab.run("node", "ip", "-batch", "-", given="".join(f"{line}\n" for line in lines))


def _comparable(line: str) -> str:
    """Without the random start value of a set's hash, and with one size for its buckets: kernels report that differently."""
    return re.sub(r" bucketsize \d+", " bucketsize 12", re.sub(r" initval \S+", "", line))


def _together(listed: str) -> list[str]:
    """Virtual servers in order, each before its real servers."""

    def place(line: str) -> tuple[str, bool, str]:
        flag, rest = line.split(" ", 1)
        return " ".join(rest.split()[:2]), flag == "-a", line

    return sorted((line.rstrip() for line in listed.splitlines()), key=place)
