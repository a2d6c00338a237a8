"""Builds the container image without a registry and without a container engine: `make image` (ARCHITECTURES="amd64 arm64").

The result is an OCI archive, dist/kube-proxy-VERSION.tar, with its list of contents (SPDX) beside it for each
architecture. The same commit gives the same bytes as long as Debian's lists of packages are the same. Load it
with one of:

    podman load -i dist/kube-proxy-VERSION.tar
    skopeo copy oci-archive:dist/kube-proxy-VERSION.tar docker://REGISTRY/kube-proxy:VERSION
    ctr -n k8s.io images import dist/kube-proxy-VERSION.tar
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.image import oci, root, sbom
from deploy.image.packages import Archive, BuildError, Package, run
from kubeproxy import __version__
from kubeproxy.config import KUBERNETES

ROOT = Path(__file__).resolve().parents[2]
PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64"}
"""The machine part of a wheel's platform, by Debian's (and Go's) name of an architecture."""


def main() -> None:
    """Builds what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mirror", required=True, help="a mirror of Debian's archive")
    parser.add_argument("--wheel", required=True, type=Path, help="the wheel of this project")
    parser.add_argument("--name", default=f"kubeproxy:{__version__}", help="the image's name and tag")
    parser.add_argument("--output", type=Path, default=ROOT / f"dist/kube-proxy-{__version__}.tar")
    parser.add_argument("architectures", nargs="+", choices=PLATFORMS)
    options = parser.parse_args()
    try:
        build(options.mirror, options.wheel, options.name, options.output, options.architectures)
    except BuildError as e:
        sys.exit(f"make image: {e}")


def build(mirror: str, wheel: Path, name: str, output: Path, architectures: Sequence[str]) -> None:
    """Builds an archive.

    Raises:
        BuildError: something is missing, cannot be fetched or fails.
    """
    revision = run("git", "rev-parse", "HEAD", cwd=ROOT).strip()
    time = int(run("git", "log", "-1", "--format=%ct", cwd=ROOT))
    native = run("dpkg", "--print-architecture").strip()
    if native not in PLATFORMS:
        raise BuildError(f"images are built on {' and '.join(PLATFORMS)}, not on {native}")
    cache = ROOT / ".image"
    cache.mkdir(exist_ok=True)
    output.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as folder:
        made: dict[str, Path] = {}
        contents: dict[str, str] = {}
        for architecture in dict.fromkeys((native, *architectures)):
            archive = Archive(cache, mirror, architecture)
            archive.update()
            packages = archive.fetch()
            wheels = [*_libraries(Path(folder), architecture), wheel]
            made[architecture] = Path(folder, f"root-{architecture}")
            root.make(
                made[architecture], packages, wheels, made.get(native) if architecture != native else None
            )
            contents[architecture] = _describe(
                made[architecture], f"{name} {architecture}", packages, wheels, time
            )
        images = [oci.Image(a, made[a], _config(revision)) for a in architectures]
        sizes = oci.write(output, name, images, time=time)
    for architecture in architectures:
        output.with_suffix(f".{architecture}.spdx.json").write_text(contents[architecture])
        print(
            f"{output.relative_to(ROOT)}: {name}, {architecture}, {sizes[architecture] / 1e6:.1f} MB compressed"
        )


def _libraries(folder: Path, architecture: str) -> list[Path]:
    """The wheels of the program's libraries, their hashes checked."""
    target = folder / f"wheels-{architecture}"
    machine = PLATFORMS[architecture]
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (17, 28, 34)]
    platforms += [f"--platform=manylinux2014_{machine}"]
    run(
        *(
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--disable-pip-version-check",
            "--only-binary=:all:",
        ),
        *(
            "--require-hashes",
            "--no-deps",
            f"--python-version={root.PYTHON}",
            "--implementation=cp",
            *platforms,
        ),
        *("-r", ROOT / "requirements/run.txt", "-d", target),
    )
    return sorted(target.glob("*.whl"))


def _describe(folder: Path, name: str, packages: Sequence[Package], wheels: Sequence[Path], time: int) -> str:
    text = sbom.document(name, packages, [root.describe(wheel) for wheel in wheels], time=time)
    place = folder / "usr/share/sbom/kube-proxy.spdx.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    place.chmod(0o644)
    return text


def _config(revision: str) -> dict[str, object]:
    label = "org.opencontainers.image"
    return {
        "Entrypoint": [f"/{root.COMMAND}"],
        "Env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "PYTHONDONTWRITEBYTECODE=1",
        ],
        "Labels": {
            f"{label}.title": "kube-proxy",
            f"{label}.description": "Kubernetes' kube-proxy in Python",
            f"{label}.version": __version__,
            f"{label}.revision": revision,
            f"{label}.licenses": "Apache-2.0",
            "io.kubernetes.version": f"v{KUBERNETES}",
        },
    }


if __name__ == "__main__":
    main()
