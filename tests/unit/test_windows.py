"""What Windows will use imports where Unix is missing: no fcntl, no netlink, no epoll, no signals but Windows' own.

The names are taken away in a process of its own, on Linux: an approximation, but one that finds what is looked up at import.
"""

import subprocess
import sys

_TAKE_AWAY = """
import asyncio, ctypes, logging.handlers, multiprocessing, os, select, selectors, signal, socket, ssl, subprocess, sys, tempfile
import aiohttp, msgspec, prometheus_client, yaml

MODULES = ("fcntl", "grp", "posix", "_posixsubprocess", "pty", "pwd", "resource", "syslog", "termios", "tty")
WINDOWS_SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
OTHERS = {
    os: ("O_CLOEXEC O_NONBLOCK WNOHANG eventfd fork geteuid getuid killpg memfd_create mkfifo pidfd_open pipe2 sched_getaffinity"
         " sendfile setsid splice uname SPLICE_F_MOVE SPLICE_F_NONBLOCK").split(),
    signal: "ITIMER_PROF pthread_sigmask setitimer siginterrupt".split(),
}
for name in MODULES:
    sys.modules[name] = None
for name in [n for n in dir(signal) if n.startswith("SIG") and n[3:4].isalpha() and n not in WINDOWS_SIGNALS]:
    delattr(signal, name)
for name in [n for n in dir(select) if "epoll" in n.lower() or n == "poll"]:
    delattr(select, name)
for name in dir(socket):
    if name.startswith(("AF_", "CMSG_", "MSG_DONTWAIT", "NETLINK_", "SCM_", "SOCK_", "SO_", "TCP_")) and name not in (
        "AF_INET AF_INET6 AF_UNSPEC SOCK_STREAM SOCK_DGRAM SOCK_RAW SO_KEEPALIVE SO_REUSEADDR TCP_NODELAY".split()
    ):
        delattr(socket, name)
for module, names in OTHERS.items():
    for name in names:
        delattr(module, name)
sys.platform = "win32"

import importlib, pathlib, re
import kubeproxy

root = pathlib.Path(kubeproxy.__file__).parent
LINUX = re.compile(r"kubeproxy\\.(netlink|linux|relay|machine\\.linux|backends\\.[a-z0-9_]+\\.)")
names = []
for path in sorted(root.rglob("*.py")):
    name = ".".join(("kubeproxy", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
    if not LINUX.match(name + ("." if path.name == "__init__.py" else "")) and path.name != "__main__.py":
        names.append(name)
        importlib.import_module(name)
print(len(names), *names)
"""


def test_what_windows_will_use_imports_without_unix() -> None:
    done = subprocess.run([sys.executable, "-c", _TAKE_AWAY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    count, *names = done.stdout.split()
    assert {"kubeproxy.app", "kubeproxy.config.watch", "kubeproxy.sources.manifests"} <= set(names)
    assert int(count) > 90
