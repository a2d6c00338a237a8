"""Which configuration a command answers for."""

import os
import sys
from pathlib import Path

import pytest

from kubeproxy.config import ConfigError
from kubeproxy.config.commandline import parse
from kubeproxy.insight.origin import OriginError, daemon_arguments, find
from kubeproxy.linux import process
from kubeproxy.linux.instance import Holder
from kubeproxy.linux.process import Process
from kubeproxy.machine.fake import FakeMachine

CONFIG = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"


def running(*arguments, root="", folder="/", environment=None):
    machine = FakeMachine(["127.0.0.1", "192.0.2.1"])
    machine.lock_holder = Holder(42, 0)
    machine.processes[42] = Process(42, arguments, environment or {}, folder, root)
    return machine


@pytest.mark.parametrize(
    "command",
    [
        ["/opt/kube-proxy/bin/kube-proxy"],
        ["/usr/bin/python3", "/opt/kube-proxy/bin/kube-proxy"],
        ["python3.11", "-I", "-m", "kubeproxy"],
        ["/usr/bin/python3", "-c", "from kubeproxy.cli import main; main()"],
    ],
)
def test_the_flags_of_a_running_daemon_are_found(command):
    flags = ["--manifests", "/etc/services.d", "-v2"]
    assert list(daemon_arguments([*command, *flags])) == flags


def test_flags_that_name_a_source_are_enough():
    machine = running("kube-proxy", "--config=/none")
    origin = find(parse(["--manifests=/etc/services.d"], "linux"), machine, {})
    assert origin.options.manifests == ("/etc/services.d",)
    assert origin.process == 0


def test_a_running_daemon_is_asked(tmp_path):
    (tmp_path / "config.conf").write_text(CONFIG)
    machine = running("kube-proxy", "--config=config.conf", "--hostname-override=n1", folder=str(tmp_path))
    origin = find({}, machine, {})
    assert (origin.options.config.mode, origin.options.config.node_name, origin.process) == (
        "nftables",
        "n1",
        42,
    )


def test_files_of_a_daemon_in_a_container_are_opened_below_its_root(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.conf").write_text(CONFIG)
    machine = running(
        "kube-proxy", "--config=/etc/config.conf", "--manifests=m", root=str(tmp_path), folder="/srv"
    )
    origin = find({}, machine, {})
    assert origin.options.config.mode == "nftables"
    assert origin.options.manifests == (f"{tmp_path}/srv/m",)
    assert origin.root == str(tmp_path)


def test_given_flags_are_added_to_those_of_the_daemon():
    machine = running("kube-proxy", "--kubeconfig=/k", "--proxy-mode=iptables")
    origin = find(parse(["--proxy-mode=nftables"], "linux"), machine, {})
    assert origin.options.config.mode == "nftables"
    assert origin.options.config.client_connection.kubeconfig == "/k"


def test_without_a_daemon_the_sources_are_asked_for():
    with pytest.raises(OriginError, match=r"no kube-proxy runs in this network namespace: .*--manifests"):
        find({}, FakeMachine(), {})


def test_in_a_pod_the_service_account_is_used():
    assert find({}, FakeMachine(), {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}).options.manifests == ()


def test_a_daemon_that_cannot_be_seen():
    machine = FakeMachine()
    machine.lock_holder = Holder(0, 0)
    with pytest.raises(OriginError, match="another PID namespace"):
        find({}, machine, {})
    machine.lock_holder = Holder(42, 0)
    with pytest.raises(OriginError, match=r"process 42, cannot be read: .*run this command as root"):
        find({}, machine, {})


def test_a_configuration_that_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        find({"config": str(tmp_path / "none")}, FakeMachine(), {})
    with pytest.raises(OriginError, match=r"Unsupported|must be"):
        find(parse(["--manifests=/m", "--proxy-mode=magic"], "linux"), FakeMachine(), {})


def test_this_process_as_linux_shows_it():
    found = process.find(os.getpid())
    assert found.number == os.getpid()
    assert found.arguments[0].endswith(Path(sys.orig_argv[0]).name)
    assert found.root == ""
    assert found.folder == str(Path.cwd())
