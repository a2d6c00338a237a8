"""The source of the objects, and everything that depends on them only.

A feed is kept when the configuration changes: only another connection to the API server needs another one. It
has what does not depend on how Services are programmed: the cluster's state, and what was reported about it.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path

from msgspec import Struct

from kubeproxy import backends
from kubeproxy.backends.mode import Mode
from kubeproxy.config.load import RunOptions
from kubeproxy.contests import Contests
from kubeproxy.events import Api, Events
from kubeproxy.hub import Hub
from kubeproxy.machine.base import Machine
from kubeproxy.reporter import Reporter
from kubeproxy.serve.exposition import Provider
from kubeproxy.sources.base import Source, Status


class SourceSettings(Struct, frozen=True, gc=False):
    """The options of a source. RunOptions that are equal in this need no other one."""

    manifests: tuple[str, ...]
    master: str
    kubeconfig: str


class Feed(Struct, frozen=True):
    """A source of objects and what it updates.

    Attributes:
        origin: the options it was made from.
        hub: gets the objects.
        source: sends them.
        description: what the source is, for the log.
        figures: what the source counts.
        api: where Events can be written; None: nowhere.
        statuses: what the source knows of its connections, by kind.
        missing: what the source cannot read and has never read, with the reasons.
        reporter: reports probable mistakes in Services.
        contests: reports fronts that several Services name.
    """

    origin: SourceSettings
    hub: Hub
    source: Source
    description: str
    figures: Provider
    api: Api | None
    statuses: Mapping[str, Status]
    missing: Callable[[], Iterable[str]]
    reporter: Reporter
    contests: Contests


def origin(options: RunOptions) -> SourceSettings:
    """The options that concern the source."""
    if options.manifests:
        return SourceSettings(options.manifests, "", "")
    return SourceSettings((), options.master, options.config.client_connection.kubeconfig)


async def load(options: RunOptions) -> None:
    """Imports, in a thread, what the source that the options name needs."""
    if not options.manifests:
        await asyncio.to_thread(import_module, "kubeproxy.sources.apiserver")


def open_feed(options: RunOptions, machine: Machine, mode: Mode, events: Events) -> Feed:
    """Makes the source that the options name.

    Args:
        options: what to run.
        machine: the host.
        mode: the mode, which knows whether the kernel serves Services of an earlier run.
        events: records Events.

    Raises:
        OSError, ValueError: the source cannot be used.
    """
    name = options.config.node_name
    hub = Hub(name)
    api: Api | None = None
    statuses: Mapping[str, Status] = {}
    missing: Callable[[], Iterable[str]] = tuple
    source: Source
    if options.manifests:
        from kubeproxy.sources.manifests import Manifests

        source = manifests = Manifests(
            [Path(path) for path in options.manifests], hub, serves=lambda: backends.serves(machine, mode)
        )
        description = f"manifests: {', '.join(options.manifests)}"
        missing, figures = manifests.unusable.unknown, manifests.figures
    else:
        from kubeproxy.sources.apiserver import ApiServer

        source = server = ApiServer(
            hub,
            name,
            kubeconfig=options.config.client_connection.kubeconfig,
            master=options.master,
            make_socket=machine.socket,
        )
        description, api = server.description, server.client
        statuses, figures = server.statuses, server.client.figures
    return Feed(
        origin=origin(options),
        hub=hub,
        source=source,
        description=description,
        figures=figures,
        api=api,
        statuses=statuses,
        missing=missing,
        reporter=Reporter(hub.state, name, events.service, files=bool(options.manifests)),
        contests=Contests(hub.state, name, events.service),
    )
