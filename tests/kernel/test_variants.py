"""Rules in the other variant of iptables: of a daemon that ran with other programs, and found where nobody expects them."""

import shutil
from pathlib import Path

import pytest

from kubeproxy.api.addresses import FAMILIES
from kubeproxy.backends.programs import Tables, Variant
from kubeproxy.backends.variants import OtherVariant
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Bare, Station, ask, until
from tests.kernel.spaces import VARIANTS, Real
from tests.kernel.test_cleanup import clean_up
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab
from tests.machines import MACHINE

WEB = "10.96.0.10"
BOTH = pytest.mark.parametrize(("old", "new"), [VARIANTS, VARIANTS[::-1]])


def programs(path: Path, used: Variant) -> Path:
    """A PATH with the programs of both variants; those of one have the plain names, too."""
    folder = path / "both"
    folder.mkdir()
    for variant in VARIANTS:
        short = "nft" if variant == "nf_tables" else variant
        multi = shutil.which(f"xtables-{short}-multi")
        assert multi is not None
        for family in ("iptables", "ip6tables"):
            for verb in ("", "-save", "-restore"):
                (folder / f"{family}-{short}{verb}").symlink_to(multi)
                if variant == used:
                    (folder / f"{family}{verb}").symlink_to(multi)
    return folder


def station(lab: Lab, path: Path, variant: Variant, endpoint: str, mode: str = "iptables") -> Station:
    (path / variant).mkdir()
    made = Station(lab, path / variant, variant, mode=mode, **{mode: {"syncPeriod": "1s"}})
    made.folder.put(service("web", WEB), endpoints("web", endpoint, local=(EP11, EP12), node=NODE_NAME))
    return made


def ours(lab: Lab, variant: Variant) -> list[str]:
    """The lines of a variant that have a name of ours."""
    with lab.inside("node"):
        return [line for family in FAMILIES for line in Real(family, variant).save() if "KUBE-" in line]


@BOTH
def test_after_a_change_of_programs_traffic_goes_to_the_new_endpoint(
    lab: Lab, tmp_path: Path, old: Variant, new: Variant
) -> None:
    with station(lab, tmp_path, old, EP11).running():
        assert ask(lab, "client", WEB) == EP11
    left = ours(lab, old)
    with station(lab, tmp_path, new, EP12).running(path=programs(tmp_path, new)) as daemon:
        daemon.says(f"from the {old} tables")
        until(lambda: not ours(lab, old))
        assert {ask(lab, role, WEB) for role in ("client", "node")} == {EP12}
        log = daemon.log()
        assert log.index("Synced: ") < log.index(f"from the {old} tables"), "first the new, then the old"
        text = "".join(
            f"{line}\n" for line in ["*nat", *(x for x in left if "KUBE-SVC" in x and x[0] == ":")]
        )
        drift = f"{text}:KUBE-SERVICES - [0:0]\n-I PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
        program = "iptables-nft-restore" if old == "nf_tables" else "iptables-legacy-restore"
        lab.run("node", program, "--noflush", given=drift)
        until(lambda: not ours(lab, old), "they are found when they come back, too")
        assert ask(lab, "client", WEB) == EP12


@BOTH
def test_without_programs_to_remove_them_a_warning_says_so(
    lab: Lab, tmp_path: Path, old: Variant, new: Variant
) -> None:
    with station(lab, tmp_path, old, EP11).running():
        pass
    before = ours(lab, old)
    with station(lab, tmp_path, new, EP12).running() as daemon:
        daemon.says(f"IPv6: the {old} tables have rules of another kube-proxy")
        missing = "tables-nft" if old == "nf_tables" else "tables-legacy"
        for family, program in (("IPv4", f"ip{missing}"), ("IPv6", f"ip6{missing}")):
            assert f"{family}: the {old} tables have rules of another kube-proxy" in daemon.log()
            assert f"program {program} is not installed" in daemon.log()
        assert f"kube-proxy --cleanup --cleanup-variant={old} " in daemon.log()
        assert ours(lab, old) == before


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@BOTH
def test_the_clean_up_that_is_recommended_leaves_the_daemon_its_own(
    lab: Lab, tmp_path: Path, old: Variant, new: Variant, mode: str
) -> None:
    with station(lab, tmp_path, old, EP11).running():
        pass
    with station(lab, tmp_path, new, EP12, mode).running() as daemon:
        daemon.says(f"IPv6: the {old} tables have rules of another kube-proxy")
        own = ours(lab, new), tables_of_ours(lab)
        done = clean_up(lab, flags=("--cleanup-variant", old))
        assert (done.returncode, ours(lab, old)) == (0, [])
        assert f"from the {old} tables" in done.stderr
        assert (ours(lab, new), tables_of_ours(lab)) == own
        assert {ask(lab, role, WEB) for role in ("client", "node")} == {EP12}


def tables_of_ours(lab: Lab) -> str:
    """The tables of nftables mode."""
    return lab.run("node", "nft", "list", "ruleset").partition("table ip kube-proxy")[2]


@BOTH
def test_a_clean_up_without_programs(lab: Lab, tmp_path: Path, old: Variant, new: Variant) -> None:
    with station(lab, tmp_path, old, EP11).running():
        pass
    before = ours(lab, old)
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "true").symlink_to("/bin/true")
    done = clean_up(lab, flags=("--cleanup-variant", old), path=str(folder))
    assert done.returncode == 1
    assert f"rules in the {old} tables stay: IPv4: program iptables-" in done.stderr
    assert ours(lab, old) == before
    assert clean_up(lab, flags=("--cleanup-variant", new), path=str(folder)).returncode == 0


def test_nftables_mode_says_so_too(lab: Lab, tmp_path: Path) -> None:
    with station(lab, tmp_path, "legacy", EP11).running():
        pass
    with station(lab, tmp_path, "nf_tables", EP12, "nftables").running() as daemon:
        daemon.says("IPv4: the legacy tables have rules of another kube-proxy")


def test_looking_makes_no_tables(space: str) -> None:
    """A legacy table comes into being by being asked for, unless the kernel's list is asked first."""
    lab = Bare(space)
    removed: list[Tables] = []
    for variant in VARIANTS:
        with lab.inside("node"):
            other = OtherVariant(MACHINE, variant, [lambda tables: removed.append(tables) or 1])  # type: ignore[func-returns-value]
            other.remove()
            other.remove()
    assert removed == []
    assert lab.run("node", "cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names") == ""
    assert lab.run("node", "nft", "list", "tables") == ""


@pytest.mark.parametrize("variant", VARIANTS)
def test_rules_of_others_alone_are_left_to_them(space: str, variant: Variant) -> None:
    lab = Bare(space)
    removed: list[Tables] = []
    base = "iptables-nft" if variant == "nf_tables" else "iptables-legacy"
    lab.run("node", base, "-t", "nat", "-N", "KUBE-SERVICES-OTHER")
    lab.run("node", base, "-t", "nat", "-N", "KUBE-MARK-MASQ")
    with lab.inside("node"):
        other = OtherVariant(MACHINE, variant, [lambda tables: removed.append(tables) or 1])  # type: ignore[func-returns-value]
        other.remove()
        assert removed == []
        lab.run("node", base, "-t", "nat", "-N", "KUBE-SERVICES")
        other.remove()
    assert [(tables.family, tables.variant) for tables in removed] == [("IPv4", variant)]
