"""Rules of the source tree: only a Machine opens sockets, runs programs and reads /proc and /sys; no class name is used twice."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import kubeproxy

ROOT = Path(kubeproxy.__file__).parent

IMPLEMENT = ("machine/", "linux/")
"""Here a machine is made of what Linux offers."""

EXEMPT = {
    "notify.py": "the service manager is the process's, whichever namespaces it serves",
    "sources/tls.py": "a file in the memory of the process, for OpenSSL",
    "relay/process.py": "a pair of sockets to a child, which belongs to no network",
    "relay/tcp.py": "the relay's own process, which was started in its namespace",
    "relay/udp.py": "the relay's own process",
    "relay/worker.py": "the relay's own process, on sockets it was handed",
}

CALLS = {
    ("socket", "socket"),
    ("socket", "create_server"),
    ("socket", "create_connection"),
    ("socket", "if_nametoindex"),
    ("socket", "socketpair"),
    ("subprocess", "Popen"),
    ("subprocess", "run"),
    ("os", "uname"),
    ("os", "cpu_count"),
    ("shutil", "which"),
}


def _found(tree: ast.Module) -> Iterator[str]:
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)) if (
                module,
                name,
            ) in CALLS:
                yield f"line {node.lineno}: {module}.{name}"
            case ast.ImportFrom(module=str(module), names=names):
                yield from (
                    f"line {node.lineno}: {module}.{n.name}" for n in names if (module, n.name) in CALLS
                )
            case ast.Constant(value=str(text)) if id(node) not in docs and text.startswith(
                ("/proc", "/sys/")
            ):
                yield f"line {node.lineno}: {text!r}"


def test_nobody_reaches_the_host_past_the_machine() -> None:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if not name.startswith(IMPLEMENT) and (lines := list(_found(ast.parse(path.read_text())))):
            found[name] = lines
    assert found.keys() == EXEMPT.keys(), {name: found[name] for name in found if name not in EXEMPT}


def test_what_is_looked_for_is_found() -> None:
    code = 'import socket\\nfrom subprocess import Popen\\nsocket.socket()\\nopen("/proc/net/dev")\\n"/proc is fine here"\\n'
    assert len(list(_found(ast.parse(code.replace("\\n", "\n"))))) == 3


def _twice(modules: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The class names, nested and private ones too, that several modules define or one defines twice."""
    found = defaultdict(list)
    for name, code in modules:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(f"{name}:{node.lineno}")
    return {name: places for name, places in found.items() if len(places) > 1}


def test_no_class_name_is_used_twice() -> None:
    assert not _twice((str(path.relative_to(ROOT)), path.read_text()) for path in sorted(ROOT.rglob("*.py")))


def test_a_class_name_used_twice_is_found() -> None:
    modules = [
        ("a.py", "class A: pass\nclass B: pass"),
        ("b.py", "class C:\n    class _D: pass\nclass A: pass"),
        ("c.py", "class _D: pass"),
    ]
    assert _twice(modules) == {"A": ["a.py:1", "b.py:3"], "_D": ["b.py:2", "c.py:1"]}
