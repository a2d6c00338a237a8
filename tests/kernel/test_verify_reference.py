"""`verify --against reference` on a node with rules of the reference: the same, until a rule is changed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab import cases, rules
from tests.lab.topology import Lab

QUESTION = ("verify", "--against", "reference", "--json")


def ask(lab: Lab, name: str, mode: str, folder: Path, *more: str) -> tuple[int, Any]:
    """Asks on the node; the mode is that of the plans."""
    config, manifests = cases.write(name, mode, folder)
    done = subprocess.run(
        ["ip", "netns", "exec", lab.name("node"), sys.executable, "-m", "kubeproxy", *QUESTION, *more,
         "--config", str(config), "--manifests", str(manifests), "--hostname-override", "bench-node"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def written(lab: Lab, name: str, mode: str) -> None:
    """Puts the rules of the reference on the node."""
    if mode == "nftables":
        rules.load_nftables(lab, cases.rules(mode, name))
    else:
        rules.load_iptables(lab, cases.rules("iptables", name), mode.partition(" ")[2])


@pytest.mark.parametrize("name", ["everything", "loadbalancer-source-ranges", "nodeport-local", "dual-stack"])
@pytest.mark.parametrize("mode", ["iptables nft", "iptables legacy", "nftables"])
def test_rules_of_the_reference(lab: Lab, tmp_path: Path, name: str, mode: str) -> None:
    written(lab, name, mode)
    status, answer = ask(lab, name, mode.partition(" ")[0], tmp_path)
    assert [each for family in answer["families"] for each in family["comparison"]["differences"]] == []
    assert [each["comparison"]["unknown"] for each in answer["families"]] == [[], []]
    assert all(each["comparison"]["kinds"] for each in answer["families"] if name != "nodeport-local")
    assert (status, answer["same"]) == (0, True)


def test_the_plans_may_be_those_of_another_mode(lab: Lab, tmp_path: Path) -> None:
    """A port that no Service has is rejected in nftables mode only."""
    written(lab, "nodeport-addresses-primary", "iptables nft")
    status, answer = ask(lab, "nodeport-addresses-primary", "iptables", tmp_path, "--mode", "nftables")
    assert answer["mode"] == "nftables"
    assert status == (0 if answer["same"] else 2)


def test_without_the_right_the_error_says_so(lab: Lab, tmp_path: Path) -> None:
    config, manifests = cases.write("clusterip-basic", "nftables", tmp_path)
    done = subprocess.run(
        ["ip", "netns", "exec", lab.name("node"), "setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable,
         "-m", "kubeproxy", *QUESTION, "--config", str(config), "--manifests", str(manifests), "--hostname-override", "bench-node"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("Error: Operation not permitted; run this command as root\n")
    assert json.loads(done.stdout)["error"] == "Operation not permitted; run this command as root"


def test_a_changed_rule_is_found(lab: Lab, tmp_path: Path) -> None:
    written(lab, "clusterip-basic", "iptables nft")
    text = lab.run("node", "iptables-nft-save", "-t", "nat")
    (rule, *_) = [line for line in text.splitlines() if "-j DNAT" in line]
    lab.run(
        "node", "iptables-nft", "-t", "nat", "-R", rule.split()[1], "2", *_arguments(rule, "10.244.9.9:1")
    )
    status, answer = ask(lab, "clusterip-basic", "iptables", tmp_path)
    found = [each for family in answer["families"] for each in family["comparison"]["differences"]]
    assert status == 2
    assert {"default/web", "default/basic"} & {each["service"] for each in found}
    assert all("10.244.9.9:1" in each["rules"] for each in found)
    assert not any("10.244.9.9:1" in each["plan"] for each in found)


def test_rules_of_both_variants_are_compared_each(lab: Lab, tmp_path: Path) -> None:
    for mode in ("iptables nft", "iptables legacy"):
        written(lab, "clusterip-basic", mode)
    status, answer = ask(lab, "clusterip-basic", "iptables", tmp_path)
    kinds = {("IPv4", f"iptables ({variant})") for variant in ("legacy", "nf_tables")}
    assert {(each["family"], each["rules"]) for each in answer["families"]} >= kinds
    assert (status, answer["same"]) == (0, True)
    lab.run("node", "iptables-legacy", "-t", "nat", "-D", "KUBE-SERVICES", "1")
    status, answer = ask(lab, "clusterip-basic", "iptables", tmp_path / "changed")
    differing = {each["rules"] for each in answer["families"] if each["comparison"]["differences"]}
    assert (status, differing) == (2, {"iptables (legacy)"})
    assert all(each["beside"] for each in answer["families"] if each["family"] == "IPv4")
    status, answer = ask(
        lab, "clusterip-basic", "iptables", tmp_path / "one", "--rules", "iptables (nf_tables)"
    )
    assert (status, answer["same"]) == (0, True)


def _arguments(rule: str, target: str) -> list[str]:
    words = rule.split()[2:]
    words[-1] = target
    return [word.strip('"') for word in words]


def test_it_says_when_there_is_nothing_to_compare(lab: Lab, tmp_path: Path) -> None:
    config, manifests = cases.write("clusterip-basic", "iptables", tmp_path)
    done = subprocess.run(
        ["ip", "netns", "exec", lab.name("node"), sys.executable, "-m", "kubeproxy", *QUESTION,
         "--config", str(config), "--manifests", str(manifests), "--hostname-override", "bench-node"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the kernel has no rules of Kubernetes' kube-proxy" in done.stderr
