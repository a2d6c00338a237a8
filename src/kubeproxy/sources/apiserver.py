"""Objects from an API server: list+watch of the objects the reference watches, with its selectors.

Services (except those labelled for another proxy and headless ones), EndpointSlices (except those of headless
Services), the own Node and ServiceCIDRs. The server filters; an object that leaves a selector is reported as
deleted.

What a server may lack: without ServiceCIDRs (before v1.33, or by access rules) there are none, and they are
requested again every ten minutes. If discovery.k8s.io/v1 is not served at all (before v1.21), core/v1
Endpoints are watched instead. Their objects are reported with kind "Endpoints"; their first list completes
"Endpoints" and also "EndpointSlice", which the start waits for. If slices are served later, they are listed
first and the Endpoints are reported as deleted afterwards.

The reference's clientConnection settings that are not here: qps and burst (four watches need no rate limit,
the back-off is one), and the content types (JSON always: msgspec decodes it faster than a Python library
decodes protobuf).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from kubeproxy.sources import kubeconfig as settings
from kubeproxy.sources.auth import Credentials
from kubeproxy.sources.base import Sink, Status
from kubeproxy.sources.client import Client, MakeSocket
from kubeproxy.sources.errors import ApiError, UnreachableError
from kubeproxy.sources.watch import Reflector, Resource, Timing

log = logging.getLogger(__name__)

SERVICES: Final = Resource(
    "Service",
    "/api/v1/services",
    labels="!service.kubernetes.io/service-proxy-name",
    fields="spec.clusterIP!=None",
    fields_optional=True,  # supported since v1.31; headless Services are ignored in any case
)
SLICES: Final = Resource(
    "EndpointSlice",
    "/apis/discovery.k8s.io/v1/endpointslices",
    labels="!service.kubernetes.io/headless",
    absent=frozenset({404}),
)
ENDPOINTS: Final = Resource("Endpoints", "/api/v1/endpoints", labels="!service.kubernetes.io/headless")
SERVICE_CIDRS: Final = Resource(
    "ServiceCIDR", "/apis/networking.k8s.io/v1/servicecidrs", absent=frozenset({403, 404})
)

_LOOK_AGAIN_SECONDS: Final = 600.0
_TRY_AGAIN_SECONDS: Final = 5.0


class ApiServer:
    """A source of objects (`base.Source`): the API server.

    Attributes:
        description: the server and the origin of its settings, at the start.
        client: for other requests to the same server, e.g. `client.request("POST", path, event)`.
        statuses: the state of each watch, by kind; "Endpoints" only while they are watched.
    """

    def __init__(
        self,
        sink: Sink,
        node: str,
        *,
        kubeconfig: str = "",
        master: str = "",
        root: str = "",
        environment: Mapping[str, str] = os.environ,
        timing: Timing = Timing(),  # noqa: B008 immutable
        make_socket: MakeSocket = socket.socket,
    ) -> None:
        """Reads the connection settings; nothing is sent before `run`.

        Args:
            sink: receives the objects.
            node: name of the own Node.
            kubeconfig: path of a kubeconfig file, or empty.
            master: URL that overrides the kubeconfig's server, or empty. Both empty: the pod's service
                account.
            root: the folder under which the files of these settings are; "" for the file system as we see it.
            environment: the environment of the pod.
            timing: clock, timeouts and random numbers.
            make_socket: makes the sockets of connections, in the network namespace they are to belong to.

        Raises:
            kubeconfig.KubeconfigError: the settings cannot be used.
        """
        credentials = Credentials(
            lambda: settings.connection(kubeconfig, master, root=root, environment=environment)
        )
        self.client = Client(credentials, make_socket=make_socket)
        self.description = (
            f"API server {credentials.connection.cluster.server} ({credentials.connection.name})"
        )
        self.statuses: dict[str, Status] = {}
        self._sink = sink
        self._timing = timing
        self._completed: set[str] = set()
        self._slices_listed = asyncio.Event()
        own_node = Resource("Node", "/api/v1/nodes", fields=f"metadata.name={node}")
        self._services = self._reflector(SERVICES, "Service")
        self._slices = self._reflector(SLICES, "EndpointSlice", then=self._slices_listed.set)
        self._node = self._reflector(own_node, "Node")
        self._cidrs = self._reflector(SERVICE_CIDRS, "ServiceCIDR")

    async def run(self) -> None:
        """Reports objects; ends only by cancellation, and closes the connections then."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._services.run())
                group.create_task(self._watch_endpoints())
                group.create_task(self._node.run())
                group.create_task(self._watch_cidrs())
        finally:
            await self.client.close()

    def _reflector(
        self, resource: Resource, *completes: str, then: Callable[[], None] = lambda: None
    ) -> Reflector:
        """Makes the reflector of a resource whose first list completes these kinds."""

        def complete() -> None:
            self._complete(*completes)
            then()

        reflector = Reflector(resource, self.client, self._sink, complete, self._timing)
        self.statuses[resource.kind] = reflector.status
        return reflector

    def _complete(self, *kinds: str) -> None:
        for kind in kinds:
            if kind not in self._completed:
                self._completed.add(kind)
                self._sink.complete(kind)

    async def _watch_cidrs(self) -> None:
        while True:
            await self._cidrs.run()
            if "ServiceCIDR" not in self._completed:
                log.info(
                    "%(server)s: ServiceCIDRs are not served, or may not be listed: none are assumed, and they are listed"
                    " again later",
                    {"server": self.client.server},
                )
            self._complete("ServiceCIDR")
            await self._wait(_LOOK_AGAIN_SECONDS)

    async def _watch_endpoints(self) -> None:
        await self._slices.run()
        while await self._serves_slices():
            log.warning(
                "%(server)s%(path)s: not found although its API group is served; trying again",
                {"server": self.client.server, "path": SLICES.path},
            )
            await self._wait(_TRY_AGAIN_SECONDS)
            await self._slices.run()
        log.warning(
            "%(server)s: discovery.k8s.io/v1 is not served: watching Endpoints instead of EndpointSlices",
            {"server": self.client.server},
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_old_endpoints())
            while True:
                await self._wait(_LOOK_AGAIN_SECONDS)
                await self._slices.run()

    async def _serves_slices(self) -> bool:
        """Whether the API group is served. A 404 is not a no: it may come from a proxy in between."""
        try:
            await self.client.request("GET", SLICES.path.rpartition("/")[0])
        except ApiError as e:
            return e.status != 404
        except UnreachableError:
            return True
        return True

    async def _watch_old_endpoints(self) -> None:
        """Watches Endpoints until slices replace them."""
        endpoints = self._reflector(ENDPOINTS, "Endpoints", "EndpointSlice")
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(endpoints.run())
            await self._slices_listed.wait()
            watching.cancel()
        log.info(
            "%(server)s: discovery.k8s.io/v1 is served now: EndpointSlices take the place of Endpoints",
            {"server": self.client.server},
        )
        endpoints.forget()
        del self.statuses[ENDPOINTS.kind]

    async def _wait(self, seconds: float) -> None:
        """Waits for a random time, once to twice as long, so that nodes do not send requests together."""
        await self._timing.sleep(seconds * (1 + self._timing.random()))
