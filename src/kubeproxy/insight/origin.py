"""The configuration a command answers for: that of its flags, else that of the kube-proxy on this node.

A running kube-proxy holds the lock of its network namespace, and the kernel names the process that does. Its
command line, environment and view of the file system are read from /proc, so this works from the host for a
kube-proxy in a container, too. It needs the privilege to read the state of that process (root, or
CAP_SYS_PTRACE).
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final

import msgspec
from msgspec import Struct

from kubeproxy.config.commandline import parse
from kubeproxy.config.flags import known
from kubeproxy.config.load import RunOptions
from kubeproxy.config.load import load as load_options
from kubeproxy.config.validate import validate
from kubeproxy.linux.process import Process
from kubeproxy.machine.base import Machine

SOURCES: Final = frozenset({"config", "kubeconfig", "manifests", "master"})
"""Flags that name the source of Services. With one of them a running kube-proxy is not asked."""


class OriginError(Exception):
    """No configuration was found, or it cannot be used; the message names the remedy."""


class Origin(Struct, frozen=True):
    """A configuration to answer for.

    Attributes:
        options: what a daemon with it does.
        root: the folder under which its files are; "" for the file system as we see it.
        environment: the environment of the daemon.
        process: the number of the running kube-proxy; 0 if none is asked.
    """

    options: RunOptions
    root: str = ""
    environment: Mapping[str, str] = {}
    process: int = 0


def find(flags: Mapping[str, Any], machine: Machine, environment: Mapping[str, str]) -> Origin:
    """Finds the configuration to answer for.

    Args:
        flags: flags of the daemon that were given with the command; those of a running kube-proxy are added
            to them.
        machine: this host.
        environment: the environment of this process.

    Raises:
        OriginError: there is none, or it excludes flags that were given.
        ConfigError: it cannot be used.
    """
    found = _find(flags, machine, environment)
    ignored = [f"--{name}" for name in flags if not known(sys.platform)[name].always]
    if found.options.config_file and ignored:
        raise OriginError(
            f"{', '.join(ignored)}: no effect with the configuration file {found.options.config_file}; change a copy of the"
            " file, and name that with --config"
        )
    return found


def _find(flags: Mapping[str, Any], machine: Machine, environment: Mapping[str, str]) -> Origin:
    if SOURCES & flags.keys():
        return Origin(_checked(load_options(flags, sys.platform)), environment=environment)
    holder = machine.holder()
    if holder is None:
        if environment.get("KUBERNETES_SERVICE_HOST"):
            return Origin(_checked(load_options(flags, sys.platform)), environment=environment)
        raise OriginError(
            "no kube-proxy runs in this network namespace: name its Services with --manifests, --kubeconfig or --config"
        )
    if not holder.process:
        raise OriginError(
            "the kube-proxy of this network namespace runs in another PID namespace: its configuration cannot be read;"
            " run this command on the host, or name its --config or --kubeconfig"
        )
    try:
        process = machine.process(holder.process)
    except OSError as e:
        raise OriginError(
            f"the configuration of kube-proxy, process {holder.process}, cannot be read: {e.strerror or e};"
            " run this command as root, or name --config, --kubeconfig or --manifests"
        ) from e
    values = parse(daemon_arguments(process.arguments), sys.platform)
    options = load_options(_placed(values, process) | dict(flags), sys.platform)
    return Origin(_checked(options), process.root, process.environment, process.number)


def daemon_arguments(command: Sequence[str]) -> Sequence[str]:
    """The flags in the command line of a running kube-proxy, which Python may run as a script or module."""
    if not PurePath(command[0] if command else "").name.startswith("python"):
        return command[1:]
    for at, argument in enumerate(command[1:], 1):
        if argument in {"-m", "-c"}:
            return command[at + 2 :]
        if not argument.startswith("-"):
            return command[at + 1 :]
    return ()


def _placed(values: Mapping[str, Any], process: Process) -> dict[str, Any]:
    """The flags with files as we can open them."""

    def placed(path: str) -> str:
        return process.root + str(PurePath(process.folder) / path)

    found = dict(values)
    if path := values.get("config"):
        found["config"] = placed(path)
    if paths := values.get("manifests"):
        found["manifests"] = tuple(placed(path) for path in paths)
    if path := values.get("journal"):
        found["journal"] = placed(path)
    if path := values.get("kubeconfig"):
        found["kubeconfig"] = str(PurePath(process.folder) / path)  # its root is added where it is read
    return found


def _checked(options: RunOptions) -> RunOptions:
    """Options whose configuration is valid, and whose kubeconfig is absolute.

    Raises:
        OriginError: it is not valid.
    """
    problems = validate(options.config, sys.platform)
    if problems:
        raise OriginError("; ".join(problems))
    kubeconfig = options.config.client_connection.kubeconfig
    if not kubeconfig:
        return options
    connection = msgspec.structs.replace(
        options.config.client_connection, kubeconfig=str(Path(kubeconfig).absolute())
    )
    return msgspec.structs.replace(
        options, config=msgspec.structs.replace(options.config, client_connection=connection)
    )
