import os
import re
import signal
import subprocess
import sys
import types

import pytest

import kubeproxy
from kubeproxy import cli
from kubeproxy.config.load import RunOptions

HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def command(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "kubeproxy", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        **settings,
    )


@pytest.fixture
def app(monkeypatch):
    """Stands in for the program proper: remembers the options and returns 7, or does what `action` is told."""
    fake = types.SimpleNamespace(seen=[], action=lambda: 7)

    def run(options):
        fake.seen.append(options)
        return fake.action()

    fake.run = run
    monkeypatch.setitem(sys.modules, "kubeproxy.app", fake)
    monkeypatch.setattr(kubeproxy, "app", fake, raising=False)
    monkeypatch.setattr("kubeproxy.log.setup", lambda options: None)
    return fake


def fail(error):
    def action():
        raise error

    return action


class TestMain:
    def test_the_program_gets_the_options_and_gives_the_status(self, app):
        assert cli.main(["--proxy-mode=nftables", "--master=http://a", "--cleanup"]) == 7
        (options,) = app.seen
        assert isinstance(options, RunOptions)
        assert (options.config.mode, options.master, options.cleanup) == ("nftables", "http://a", True)
        assert options.config.node_port_primary

    def test_a_bad_flag_keeps_the_program_from_starting(self, app, capsys):
        assert cli.main(["--proxy-mdoe=nftables"]) == 1
        assert capsys.readouterr().err == "Error: unknown flag: --proxy-mdoe (did you mean --proxy-mode?)\n"
        assert app.seen == []

    def test_every_bad_field_has_a_line(self, app, capsys):
        assert cli.main(["--proxy-mode=magic", "--oom-score-adj=2000", "--feature-gates=magic=true"]) == 1
        assert capsys.readouterr().err.splitlines() == [
            'Error: KubeProxyConfiguration.featureGates: Invalid value: {"magic":true}: unrecognized feature gate: magic',
            "Error: KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 2000: must be within the range [-1000, 1000]",
            'Error: KubeProxyConfiguration.Mode.ProxyMode: Invalid value: "magic": must be iptables, ipvs, nftables, userspace, ebpf or blank (blank means iptables)',
        ]
        assert app.seen == []

    def test_ctrl_c_is_no_traceback(self, app, capsys):
        app.action = fail(KeyboardInterrupt())
        assert cli.main([]) == 130
        assert capsys.readouterr().err == ""

    def test_a_crash_is_logged_and_is_status_1(self, app, caplog):
        app.action = fail(RuntimeError("it broke"))
        assert cli.main([]) == 1
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == ("CRITICAL", "kube-proxy failed")
        assert str(record.exc_info[1]) == "it broke"

    def test_warnings_are_logged(self, app, caplog):
        cli.main(["--healthz-port=0"])
        assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
            "--healthz-port is deprecated: use --healthz-bind-address"
        ]

    def test_flags_are_logged_at_verbosity_2_only(self, app, caplog):
        caplog.set_level(16)
        cli.main(["--masquerade-all"])
        messages = [record.getMessage() for record in caplog.records]
        assert 'FLAG: --masquerade-all="true"' in messages
        assert 'FLAG: --conntrack-min="131072"' in messages
        caplog.clear()
        caplog.set_level(20)
        cli.main(["--masquerade-all"])
        assert caplog.records == []


class TestCommand:
    def test_the_version(self):
        done = command("--version")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"kube-proxy v{kubeproxy.__version__} (compatible with Kubernetes v1.36)\n"

    def test_the_whole_version(self):
        done = command("--version=raw")
        assert done.returncode == 0
        assert re.match(
            r'version\.Info\{Major:"1", Minor:"36", GitVersion:"v1\.36\.[0-9]+", .*\}\n$', done.stdout
        )

    def test_a_version_to_go_by_prints_nothing(self, app, capsys):
        assert cli.main(["--version=v1.36.2-x"]) == 7
        assert capsys.readouterr().out == ""
        assert app.seen[0].version == "v1.36.2-x"

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_the_help(self, flag):
        done = command(flag)
        assert (done.returncode, done.stderr) == (0, "")
        assert "  --proxy-mode string\n" in done.stdout

    def test_help_that_nobody_reads_to_the_end(self):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            done = subprocess.run(
                [sys.executable, "-m", "kubeproxy", "-h"],
                check=False,
                stdout=pipe,
                stderr=subprocess.PIPE,
                timeout=60,
            )
        assert (done.returncode, done.stderr) == (0, b"")

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            (["--nonsense"], "Error: unknown flag: --nonsense"),
            (["run"], 'Error: "kube-proxy" does not take any arguments, got ["run"]'),
            (["--config=/nonexistent"], "Error: --config: /nonexistent: No such file or directory"),
            (["--bind-address=x"], 'Error: invalid argument "x" for "--bind-address" flag: "x" is not a valid IP address'),
            (["--cluster-cidr=x"], 'Error: KubeProxyConfiguration.DetectLocalConfiguration.ClusterCIDRs[0]: Invalid value: "x": must be a valid CIDR (e.g. 10.100.0.0/16)'),
            (["--hostname-override= "], "Error: --hostname-override: empty hostname-override is invalid"),
        ],
    )  # fmt: skip
    def test_an_error_is_one_line_and_status_1(self, arguments, error):
        done = command(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", error + "\n")

    def test_a_bad_file_is_one_line_that_names_file_and_field(self, tmp_path):
        path = tmp_path / "c.yaml"
        path.write_text(HEADER + "conntrack:\n  min: many\n")
        done = command(f"--config={path}")
        assert (done.returncode, done.stderr) == (1, f"Error: {path}: conntrack.min: expected int, got str\n")

    def test_the_configuration_is_written(self, tmp_path):
        path = tmp_path / "out.yaml"
        done = command("--proxy-mode=nftables", "--masquerade-all", f"--write-config-to={path}")
        assert done.returncode == 0
        assert re.match(rf"I\d{{4}} .*\] Wrote configuration to {path}\n$", done.stderr)
        text = path.read_text()
        assert "mode: nftables\n" in text
        assert "nodePortAddresses:\n- primary\n" in text
        again = tmp_path / "again.yaml"
        assert command(f"--config={path}", f"--write-config-to={again}").returncode == 0
        assert again.read_text() == text

    def test_a_lenient_file_works_with_an_error_in_the_chosen_format(self, tmp_path):
        path = tmp_path / "c.yaml"
        path.write_text(HEADER + "clusterCidr: 10.0.0.0/8\nlogging: {format: json}\n")
        done = command(f"--config={path}", f"--write-config-to={tmp_path}/out")
        assert done.returncode == 0
        first, second = done.stderr.splitlines()
        assert 'unknown field \\"clusterCidr\\"; did you mean \\"clusterCIDR\\"?' in first
        assert '"v":' not in first, "an error, which has no verbosity"
        assert first.startswith('{"ts":')
        assert '"msg":"Wrote configuration' in second

    def test_the_file_is_not_written_if_the_configuration_is_bad(self, tmp_path):
        done = command("--oom-score-adj=5000", f"--write-config-to={tmp_path}/out")
        assert done.returncode == 1
        assert not (tmp_path / "out").exists()

    def test_ctrl_c_ends_the_process_quietly(self, tmp_path):
        fifo = tmp_path / "config"
        os.mkfifo(fifo)
        # A shell that tests run in may ignore SIGINT, and its children inherit that.
        listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        main = "import sys; from kubeproxy.cli import main; sys.exit(main())"
        with subprocess.Popen(
            [sys.executable, "-c", f"{listening}; {main}", f"--config={fifo}"],
            stderr=subprocess.PIPE,
        ) as process:
            with fifo.open("w"):  # opens once the process reads, so it is past its imports
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (130, b"")

    def test_what_needs_no_program_imports_little(self):
        code = (
            "import sys; from kubeproxy import cli; cli.main(['--version']);"
            "print(sorted({'asyncio', 'aiohttp', 'yaml', 'ssl', 'subprocess', 'ipaddress', 'argparse', 'dataclasses',"
            " 'importlib.metadata', 'logging.config', 'prometheus_client'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.splitlines()[1] == "[]"
