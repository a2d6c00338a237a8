"""The image that `make image` built: what is in it, and that it serves, run as the DaemonSet runs it.

The container is run by runc: the security context, arguments and mounts are those of the manifest, the network namespace is the
lab's node, and the root file system is read-only.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.image import oci
from kubeproxy import __version__
from kubeproxy.api import types
from tests.deploy import objects
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask, until
from tests.lab import netns
from tests.lab.topology import EP11, NODE_NAME, ROOT, Lab

ARCHIVE = ROOT / f"dist/kube-proxy-{__version__}.tar"
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
LARGEST = 45_000_000
"""Bytes of an image in a registry, compressed."""

WEB = "10.96.0.10"
PROGRAMS = ("sh", "ip", "kmod", "ipset", "ipvsadm", "nft", "conntrack")
TABLES = [
    f"{base}{kind}{end}"
    for base in ("iptables", "ip6tables")
    for kind in ("", "-nft", "-legacy")
    for end in ("", "-save", "-restore")
]


class Layout:
    """The images of the archive, by architecture."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.blobs = {
            member.name.rpartition("/")[2]: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
            if member.isfile()
        }
        (top,) = json.loads(self.blobs["index.json"])["manifests"]
        self.manifests = {m["platform"]["architecture"]: self.json(m) for m in self.json(top)["manifests"]}

    def json(self, descriptor: Mapping[str, Any]) -> Any:
        return json.loads(self.blob(descriptor))

    def blob(self, descriptor: Mapping[str, Any]) -> bytes:
        return self.blobs[descriptor["digest"].removeprefix("sha256:")]


@pytest.fixture(scope="module")
def layout() -> Layout:
    if not ARCHIVE.exists():
        pytest.fail(f"{ARCHIVE} is missing: run `make image`", pytrace=False)
    with tarfile.open(ARCHIVE) as archive:
        return Layout(archive)


@pytest.fixture(scope="module")
def root(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file system for this machine."""
    folder = tmp_path_factory.mktemp("root")
    (layer,) = layout.manifests[MACHINE]["layers"]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layout.blob(layer)))) as archive:
        archive.extractall(folder, filter="fully_trusted")
    return folder


def test_blobs_are_what_their_names_say(layout: Layout) -> None:
    for name, data in layout.blobs.items():
        assert name in ("index.json", "oci-layout") or hashlib.sha256(data).hexdigest() == name


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_each_architecture_is_small_and_says_what_it_is(layout: Layout, architecture: str) -> None:
    manifest = layout.manifests[architecture]
    (layer,) = manifest["layers"]
    assert layer["size"] < LARGEST
    configuration = layout.json(manifest["config"])
    assert configuration["architecture"] == architecture
    labels = configuration["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert configuration["rootfs"]["diff_ids"] == [
        f"sha256:{hashlib.sha256(gzip.decompress(layout.blob(layer))).hexdigest()}"
    ]


def test_the_programs_are_in_it_and_run(root: Path) -> None:
    for program in (*PROGRAMS, *TABLES):
        assert chroot(root, "sh", "-c", f"command -v {program}").stdout, program
    assert chroot(root, "modprobe", "--version").returncode == 0
    assert "(nf_tables)" in chroot(root, "iptables", "--version").stdout
    assert "(legacy)" in chroot(root, "iptables-legacy", "--version").stdout
    assert chroot(root, "kube-proxy", "--version").stdout.startswith(f"kube-proxy v{__version__}")


def test_no_package_manager_is_in_it(root: Path) -> None:
    for program in ("apt", "apt-get", "dpkg", "pip", "pip3", "perl"):
        assert chroot(root, "sh", "-c", f"command -v {program}").returncode != 0, program
    assert not list(root.rglob("pip"))


def test_every_module_can_be_imported(root: Path) -> None:
    code = (
        "import sys, pkgutil, importlib\n"
        "sys.path.insert(0, '/usr/local/lib/python/3.13')\n"
        "import kubeproxy\n"
        "for module in pkgutil.walk_packages(kubeproxy.__path__, 'kubeproxy.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    done = chroot(root, "python3", "-c", code)
    assert done.returncode == 0, done.stderr


def test_everything_has_byte_code(root: Path) -> None:
    folder = root / "usr/local/lib/python/3.13/kubeproxy"
    for source in folder.rglob("*.py"):
        assert (source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc").exists(), source


def test_its_contents_are_listed(root: Path) -> None:
    listed = json.loads((root / "usr/share/sbom/kube-proxy.spdx.json").read_text())
    found = {package["name"]: package["versionInfo"] for package in listed["packages"]}
    assert found["kubeproxy"] == __version__
    assert {"aiohttp", "msgspec", "iptables", "libc6"} <= found.keys()
    names = {path.name for path in (root / "var/lib/dpkg/status.d").iterdir()}
    assert names <= found.keys()


def test_the_same_files_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root / "usr/local", copy, symlinks=True)
    for path in copy.rglob("*.py"):
        os.utime(path, (1, 1))
    assert oci.tarball(copy, 7) == oci.tarball(root / "usr/local", 7)


def chroot(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}
    return subprocess.run(
        [shutil.which("chroot") or "chroot", str(root), *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def bundle(
    folder: Path,
    root: Path,
    lab: Lab,
    container: Mapping[str, Any],
    mounts: Mapping[str, Path],
    args: Sequence[str],
) -> Path:
    """A bundle for an OCI runtime: a container of the DaemonSet on the lab's node; returns its folder."""
    context = container["securityContext"]
    rights = [f"CAP_{right}" for right in context.get("capabilities", {}).get("add", ())]
    if context.get("privileged"):
        rights = [
            "CAP_NET_ADMIN",
            "CAP_NET_RAW",
            "CAP_SYS_ADMIN",
            "CAP_DAC_OVERRIDE",
        ]  # as far as tests have them
    read_only = ["bind", "ro"]
    system = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "mode=755", "size=65536k"],
        },
        {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]},
    ]
    wanted = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    volumes = [
        {
            "destination": place,
            "source": str(source),
            "options": read_only if wanted.get(place, True) else ["bind", "rw"],
        }
        for place, source in mounts.items()
    ]
    ids = lab.name("node")
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": context.get("readOnlyRootFilesystem", False)},
        "process": {
            "args": list(args),
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", f"NODE_NAME={NODE_NAME}"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": not context.get("allowPrivilegeEscalation", True),
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights),
        },
        "mounts": [*system, *volumes],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("mount", "pid", "ipc", "uts")),
                {"type": "network", "path": str(netns.FOLDER / ids)},
            ],
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def runc(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    program = shutil.which("runc")
    if program is None:
        pytest.fail("this test needs runc: apt-get install runc", pytrace=False)
    return subprocess.run(
        [program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        **options,
    )


@contextlib.contextmanager
def running(folder: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """The container of a bundle, until the block ends."""
    program = shutil.which("runc") or "runc"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "run", "--bundle", str(folder), name],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
        )
    try:
        yield process
    finally:
        runc("delete", "--force", name)
        process.wait(30)


@pytest.mark.parametrize("overlay", ["fresh", "least-privilege"])
def test_it_serves_as_the_daemon_set_runs_it(lab: Lab, root: Path, tmp_path: Path, overlay: str) -> None:
    station = Station(lab, tmp_path, "nf_tables", mode="nftables", oomScoreAdj=0)
    station.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", EP11, local=(EP11,), node=NODE_NAME),
    )
    pod = objects.pod(objects.parse(objects.kustomize(f"overlays/{overlay}")))
    (tmp_path / "config").mkdir()
    shutil.copy(station.config, tmp_path / "config/config.conf")
    (tmp_path / "lock").touch()
    mounts = {
        "/var/lib/kube-proxy": tmp_path / "config",
        "/run/xtables.lock": tmp_path / "lock",
        "/etc/services.d": station.folder.path,
    }
    name = f"{lab.prefix}image"
    for before in pod.get("initContainers", ()):
        init = bundle(tmp_path / "init", root, lab, before, mounts, before["command"])
        with running(init, f"{name}-init") as process:
            assert process.wait(60) == 0, (init / "log").read_text()
    (container,) = pod["containers"]
    args = [arg.replace("$(NODE_NAME)", NODE_NAME) for arg in container["command"]]
    main = bundle(tmp_path / "main", root, lab, container, mounts, [*args, "--manifests=/etc/services.d"])
    with running(main, name) as process:
        until(lambda: ready(lab) or process.poll() is not None)
        assert process.poll() is None, (main / "log").read_text()
        assert ask(lab, "client", WEB) == EP11
        assert ask(lab, "out", "192.0.2.1", 30080) == EP11


def ready(lab: Lab) -> bool:
    url = "http://127.0.0.1:10256/readyz"
    with (
        contextlib.suppress(OSError),
        netns.inside(lab.name("node")),
        urllib.request.urlopen(url, timeout=5) as answer,
    ):
        return bool(answer.status == 200)
    return False
