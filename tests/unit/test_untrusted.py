"""Texts that try to crash the program, to fill its memory or to occupy it, in all that reads texts of others.

A crash would end the tests, so the texts are read in a process of their own, with less memory and processor time than
such a text would take.
"""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kubeproxy.api import limits, types
from kubeproxy.api.jsontext import BROKEN
from kubeproxy.config import ConfigError
from kubeproxy.config.decode import decode
from kubeproxy.config.load import RunOptions
from kubeproxy.config.types import API_VERSION, KIND, KubeProxyConfiguration
from kubeproxy.config.watch import reread
from kubeproxy.sources import events, execplugin
from kubeproxy.sources.documents import documents
from kubeproxy.sources.errors import api_error
from kubeproxy.sources.kubeconfig import KubeconfigError, load
from tests.hostile_texts import TEXTS, as_object

MEMORY = 2 * 2**30
SECONDS = 300


def of_config(file: Path) -> None:
    decode(file.read_bytes(), str(file))


def of_watched_config(file: Path) -> None:
    """The running program looks whether its file changed."""
    _judge_strictly(str(file), b"mode: iptables")


def of_kubeconfig(file: Path) -> None:
    load(str(file))


def of_manifest(file: Path) -> None:
    for _, make in documents(file):
        list(make.unknown())
        make()


def of_json_manifest(file: Path) -> None:
    of_manifest(file.rename(file.with_suffix(".json")))


FILES: dict[str, tuple[Callable[[Path], None], tuple[type[Exception], ...]]] = {
    "config": (of_config, (ConfigError,)),
    "watched config": (of_watched_config, (ConfigError,)),
    "kubeconfig": (of_kubeconfig, (KubeconfigError,)),
    "manifest": (of_manifest, (ValueError, types.UndecodableError)),
    "JSON manifest": (of_json_manifest, (ValueError, types.UndecodableError)),
}
"""What reads files, and the errors that its callers expect."""

KINDS = {
    "config": (API_VERSION, KIND),
    "watched config": (API_VERSION, KIND),
    "kubeconfig": ("v1", "Config"),
}
"""What the texts must be to get as far as possible."""


def child(name: str, folder: str) -> None:
    """Reads all texts and prints what came of each, as a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    read, errors = FILES[name]
    version, kind = KINDS.get(name, ("v1", "Service"))
    for case, text, _ in TEXTS:
        file = Path(folder) / "file.yaml"
        file.write_bytes(as_object(text, version, kind))
        try:
            read(file)
            words = ""
        except errors as e:
            words = str(e)
        print(json.dumps([case, words]), flush=True)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_or_refused_with_one_line(name: str, tmp_path: Path) -> None:
    code = f"from tests.unit.test_untrusted import child; child({name!r}, {str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    found: dict[str, Any] = dict(map(json.loads, done.stdout.splitlines()))
    last = [case for case, _, _ in TEXTS][len(found) - 1]
    assert done.returncode == 0, f"after {last}: {done.returncode} {done.stderr[-2000:]}"
    for case, _, says in TEXTS:
        words = found[case]
        assert "\n" not in words, case
        assert len(words) < 1000, case
        if says and not (name == "JSON manifest" and words):
            assert re.search(says, words), (case, words[:300])


JSON = ["[" * 200_000, '{"a":' * 200_000, '{"type": "ADDED", "object": ' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"metadata": {"annotations": ' + "[" * 200_000 + "]" * 200_000 + "}}", '{"status": ' * 200_000, '{"kind": "\udcff"}',
        '{"metadata": {"name": "\\ud800"}}', "9" * 100_000, '{"metadata": {"name": "a", "x": ' + "[" * 900 + "]" * 900 + "}}"]  # fmt: skip


@pytest.mark.parametrize("text", JSON, ids=range(len(JSON)))
def test_an_answer_that_is_nested_without_end_is_an_error_like_any_other(text: str) -> None:
    data = text.encode(errors="surrogateescape")
    for read in (events.decode_event, events.decode_head, events.decode_page):
        try:
            read(data)
        except Exception as e:
            assert isinstance(e, BROKEN), e  # noqa: PT017 any of several, or none
    for kind in types.KINDS:
        try:
            types.decode(kind, msgspec.Raw(data))
        except types.UndecodableError as e:
            assert "\n" not in str(e)  # noqa: PT017 some are decoded
    assert api_error(data, 500).status == 500
    with pytest.raises(execplugin.PluginError, match="printed"):
        execplugin.parse(data, "v1", "exec plugin x")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("kubeproxy.config.load", "kubeproxy.sources.kubeconfig", "kubeproxy.sources.documents"):
        monkeypatch.setattr(f"{file}.read_file", lambda path, *_: limits.read_file(path, 100))
    with pytest.raises(ConfigError, match=r"/dev/zero: larger than 100 bytes"):
        _judge_strictly("/dev/zero")
    with pytest.raises(KubeconfigError, match=r"^/dev/zero: larger than 100 bytes$"):
        load("/dev/zero")
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        list(documents(Path("/dev/zero")))
    (tmp_path / "x").write_bytes(b"#" * 100)
    assert list(documents(tmp_path / "x")) == []


def _judge_strictly(path: str, held: bytes = b"") -> None:
    found = reread(RunOptions(KubeProxyConfiguration(), path, given={"config": path}), held)
    if isinstance(found, str):
        raise ConfigError(found)
