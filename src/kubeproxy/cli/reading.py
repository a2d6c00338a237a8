"""Reads the cluster for a command; what is wrong is reported as a wrong question is."""

import os
import sys
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from kubeproxy.answers import names
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.cli.command import Asked, CommandError
from kubeproxy.config.validate import validate
from kubeproxy.insight import origin, snapshot
from kubeproxy.insight.origin import Origin
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key

READING: Final = "reading Services and EndpointSlices"


def configuration(asked: Asked, machine: Machine) -> Origin:
    """The configuration to answer for: that of the given flags, or of the running kube-proxy.

    A command that has an option `--mode` answers for that mode, if it is given.

    Raises:
        CommandError: there is none.
        ConfigError: it cannot be used.
    """
    try:
        found = origin.find(asked.flags, machine, os.environ)
    except origin.OriginError as e:
        raise CommandError(str(e)) from e
    mode = getattr(asked.arguments, "mode", "")
    if not mode:
        return found
    config = replace(found.options.config, mode=mode)
    if errors := validate(config, sys.platform):
        raise CommandError(f"--mode {mode}: {errors[0]}")
    return replace(found, options=replace(found.options, config=config))


def service(text: str, taken: Snapshot) -> Key | None:
    """The Service that is asked about, by its name; None for "".

    Raises:
        CommandError: there is none.
    """
    try:
        return names.known(taken.state, text) if text else None
    except ValueError as e:
        raise CommandError(str(e)) from e


async def cluster(
    asked: Asked, machine: Machine, *, found: Origin | None = None, paths: Sequence[str] = ()
) -> Snapshot:
    """The cluster, planned for the node that is asked for.

    Args:
        asked: the question.
        machine: this host.
        found: the configuration; None: that of `configuration`.
        paths: other objects to read from the API server.

    Raises:
        CommandError: it cannot be read.
        ConfigError: the configuration cannot be used.
        OSError: manifests do not exist.
    """
    with asked.out.progress(READING):
        found = configuration(asked, machine) if found is None else found
        try:
            return await snapshot.take(found, machine, node=asked.arguments.node, paths=paths)
        except snapshot.SnapshotError as e:
            raise CommandError(str(e)) from e
