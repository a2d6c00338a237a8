"""What ipvs mode has on the node besides rules, in the form of the oracle's `.rules` files."""

import re

from tests.lab.topology import Lab


def read(lab: Lab) -> str:
    """The sections after those of iptables: virtual servers, sets, addresses of kube-ipvs0; each sorted."""
    servers = _together(lab.run("node", "ipvsadm", "-Sn"))
    sets = sorted(re.sub(r" initval \S+", "", line) for line in lab.run("node", "ipset", "save").splitlines())
    addresses = re.findall(
        r"(inet6? \S+)",
        lab.run("node", "ip", "-o", "address", "show", "dev", "kube-ipvs0", "scope", "global"),
    )
    sections = (("ipvsadm", servers), ("ipset", sets), ("kube-ipvs0", sorted(addresses)))
    return "\n".join(
        f"# {title}\n{''.join(f'{line}{chr(10)}' for line in lines)}" for title, lines in sections
    )


def _together(listed: str) -> list[str]:
    """Virtual servers in order, each before its real servers."""

    def place(line: str) -> tuple[str, bool, str]:
        flag, rest = line.split(" ", 1)
        return " ".join(rest.split()[:2]), flag == "-a", line

    return sorted((line.rstrip() for line in listed.splitlines()), key=place)
