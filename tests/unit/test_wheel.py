"""What is installed is complete: every module of the wheel imports, and the status page is there, without the source tree."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.lab.topology import ROOT

_IMPORT_ALL = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
for path in sorted(root.glob("kubeproxy/**/*.py")):
    if path.name != "__main__.py":
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        assert importlib.import_module(name).__file__.startswith(str(root)), name
from kubeproxy.serve.page.site import assembled
assert b"</html>" in assembled()[0]
"""


def test_every_module_of_the_wheel_imports(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel"]
    build = [*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("kubeproxy-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    command = [sys.executable, "-c", _IMPORT_ALL, str(tmp_path / "installed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]
