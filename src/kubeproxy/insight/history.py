"""What happened, in words: the events of a journal."""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from kubeproxy.api.rows import (
    BalancingRow,
    Condition,
    EndpointRow,
    NodeRow,
    PortRow,
    ServiceRow,
    SliceRow,
)
from kubeproxy.insight import moments
from kubeproxy.insight.journal import Journal, Past, Segment
from kubeproxy.journal.records import (
    Ended,
    NodeStored,
    Opened,
    Planned,
    RangesStored,
    Record,
    Refusal,
    ServiceStored,
    SlicesStored,
    SyncDone,
    TroubleSeen,
)
from kubeproxy.model.plan import Key


class Event(Struct, frozen=True, gc=False, rename="camel"):
    """Something that happened, as programs get it: the fields and their names do not change.

    Attributes:
        at: when, RFC 3339 in UTC.
        unix: the same as Unix time.
        kind: service, endpoints, node, serviceCIDRs, configuration, sync, refused, accepted, drift, failure,
            start, lost or end.
        service: the Service it concerns, as namespace/name; "" if it concerns all or none.
        object: the EndpointSlice or Endpoints that changed.
        family: the IP family, "" for both.
        changes: what happened.
        full: the sync compared everything with the kernel.
        services: the Services that a sync changed in the kernel; none if they were more than are recorded.
        count: how many they were.
        seconds: how long the sync took.
        delay: of a sync: seconds from the first of what led to it to its end.
        cluster_delay: the same from the change in the cluster.
    """

    at: str
    unix: float
    kind: str
    service: str = ""
    object: str = ""
    family: str = ""
    changes: tuple[str, ...] = ()
    full: bool = False
    services: tuple[str, ...] = ()
    count: int = 0
    seconds: float | None = None
    delay: float | None = None
    cluster_delay: float | None = None

    def concerns(self, service: str) -> bool:
        """Whether it says something of a Service."""
        if self.kind == "sync":
            return self.full or service in self.services or len(self.services) < self.count
        return self.service in {service, ""}


def events(journal: Journal, segment: Segment | None = None) -> Iterator[Event]:
    """The events of a journal, or of one segment, the oldest first."""
    drifted: dict[str, float] = {}  # when drift that is not repaired yet was detected
    for past, record in journal.replay(segment):
        if isinstance(record, TroubleSeen) and record.kind == "drift":
            drifted.setdefault(record.family, record.at)
        event = _event(past, record, drifted)
        if event is not None:
            yield event


def _keys(past: Past, record: ServiceStored | SlicesStored) -> Iterable[Key]:
    if isinstance(record, ServiceStored):
        return ((record.namespace, record.name),)
    rows = (*_before(past, record), *record.rows)
    return {(row.namespace, row.service) for row in rows}


def _before(past: Past, record: SlicesStored) -> tuple[SliceRow, ...]:
    return past.state.rows((record.kind, record.namespace, record.name))


def _event(past: Past, record: Record, drifted: dict[str, float]) -> Event | None:
    """The event of a record; None if it says nothing new."""
    at, unix = moments.rfc3339(record.at), record.at
    match record:
        case Opened():
            return _opened(record, at)
        case ServiceStored():
            key = record.namespace, record.name
            words = tuple(_service(past, key, record))
            return Event(at, unix, "service", "/".join(key), changes=words) if words else None
        case SlicesStored():
            service = next(("/".join(key) for key in sorted(_keys(past, record))), "")
            words = tuple(slice_words(_before(past, record), record.rows))
            name = f"{record.kind} {record.namespace}/{record.name}"
            return Event(at, unix, "endpoints", service, name, changes=words) if words else None
        case NodeStored():
            words = tuple(_node(past.node, record.row))
            return Event(at, unix, "node", changes=words) if words else None
        case RangesStored():
            return Event(at, unix, "serviceCIDRs", changes=(", ".join(record.ranges) or "none",))
        case Planned():
            words = tuple(_planned(past, record))
            return Event(at, unix, "configuration", "", "", record.node.family, words) if words else None
        case SyncDone():
            return _sync(record, at, drifted)
        case Refusal():
            key = record.namespace, record.name
            kind = "refused" if record.words else "accepted"
            words = (
                f"the kernel refuses it: {record.words}"
                if record.words
                else "the kernel does not refuse it any more",
            )
            return Event(at, unix, kind, "/".join(key), "", record.family, words)
        case TroubleSeen():
            words = (record.words if record.kind == "drift" else f"sync failed: {record.words}",)
            return Event(at, unix, record.kind, "", "", record.family, words)
        case Ended():
            return Event(at, unix, "end", changes=("kube-proxy ended; its rules stay",))
    return None


def _opened(record: Opened, at: str) -> Event | None:
    match record.reason:
        case "start":
            words = f"kube-proxy {record.version} started as node {record.node}"
            return Event(at, record.at, "start", changes=(words,))
        case "lost":
            words = "changes before this were not recorded, because the journal could not be written"
            return Event(at, record.at, "lost", changes=(words,))
        case "exchange":
            return Event(at, record.at, "configuration", changes=("another configuration came into force",))
    return None


def _sync(record: SyncDone, at: str, drifted: dict[str, float]) -> Event:
    delay = round(record.waited + record.seconds, 6)
    some = "" if record.count == 1 else "s"
    words = f"{'full' if record.full else 'partial'} sync of {record.count:,} changed Service{some} took {moments.span(record.seconds)}"
    changes = [words]
    if record.full and (since := drifted.pop(record.family, None)) is not None:
        changes.append(
            f"what drift changed is restored, {moments.span(record.at - since)} after it was detected"
        )
    if record.count and not record.full:
        changes.append(f"in the kernel {moments.span(delay)} after the change was received")
    if record.delay >= 0:
        changes.append(f"{moments.span(record.delay)} after the change in the cluster")
    return Event(
        at,
        record.at,
        "sync",
        family=record.family,
        changes=tuple(changes),
        full=record.full,
        services=tuple("/".join(key) for key in record.keys),
        count=record.count,
        seconds=round(record.seconds, 6),
        delay=delay,
        cluster_delay=round(record.delay, 6) if record.delay >= 0 else None,
    )


def _service(past: Past, key: Key, record: ServiceStored) -> Iterator[str]:
    before, after = past.state.services.get(key), record.row
    if after is None:
        if record.exists:
            yield "is not proxied: it is headless, of type ExternalName, or another proxy serves it"
        else:
            yield "deleted"
    elif before is None:
        fronts = [", ".join(after.cluster_ips), *_fronts(after)]
        yield f"created: ClusterIP {'; '.join(part for part in fronts if part)}"
        yield f"ports: {_ports(after.ports)}"
    else:
        yield from service_words(before, after)


def _fronts(row: ServiceRow) -> Iterator[str]:
    if row.external_ips:
        yield f"external IPs {', '.join(row.external_ips)}"
    if row.load_balancer_ips:
        yield f"load balancer IPs {', '.join(row.load_balancer_ips)}"


def service_words(before: ServiceRow, after: ServiceRow) -> Iterator[str]:
    """How a Service differs from what it was."""
    if before.ports != after.ports:
        yield f"ports: {_ports(before.ports)} -> {_ports(after.ports)}"
    lists = (
        ("ClusterIPs", before.cluster_ips, after.cluster_ips),
        ("external IPs", before.external_ips, after.external_ips),
        ("load balancer IPs", before.load_balancer_ips, after.load_balancer_ips),
        ("source ranges", before.source_ranges, after.source_ranges),
        ("allowed sources", before.allowed_sources, after.allowed_sources),
        ("denied sources", before.denied_sources, after.denied_sources),
    )
    for name, old, new in lists:
        if old != new:
            yield f"{name}: {', '.join(old) or 'none'} -> {', '.join(new) or 'none'}"
    policy = {True: "Local", False: "Cluster"}
    values = (
        ("affinity", f"{before.affinity} s", f"{after.affinity} s"),
        ("internalTrafficPolicy", policy[before.internal_local], policy[after.internal_local]),
        ("externalTrafficPolicy", policy[before.external_local], policy[after.external_local]),
        ("healthCheckNodePort", str(before.health_check_port), str(after.health_check_port)),
        ("PROXY protocol", str(before.proxy_protocol), str(after.proxy_protocol)),
        ("preserve-destination", str(before.preserve_destination), str(after.preserve_destination)),
        ("connections to removed endpoints end", str(before.ends_connections), str(after.ends_connections)),
        ("silent endpoints are skipped", str(before.skips_silent), str(after.skips_silent)),
        ("at connect time", str(before.at_connect), str(after.at_connect)),
    )
    for name, was, is_ in values:
        if was != is_:
            yield f"{name}: {was} -> {is_}"
    for name, was, is_ in zip(
        ("balancing", "weights", "preferred"), _balancing(before), _balancing(after), strict=True
    ):
        if was != is_:
            yield f"{name}: {was} -> {is_}"
    if before.ignored != after.ignored:
        ignored = [", ".join(f"{a.name} ({a.reason})" for a in row.ignored) for row in (before, after)]
        yield f"annotations that are ignored: {ignored[0] or 'none'} -> {ignored[1] or 'none'}"


def _balancing(row: ServiceRow) -> tuple[str, str, str]:
    """The method, the weights and the preferred endpoints of a Service."""
    given = row.balancing or BalancingRow()
    method: str = given.method
    if method == "maglev":
        size = f", table of {given.table_size}" if given.table_size else ""
        method += f" of the client's address{' and port' if given.by_port else ''}{size}"
    weights = [f"{each.kind}:{each.name}={each.weight}" for each in given.weights]
    near = f"those of this {given.near} up to {given.bound} connections each" if given.near else "none"
    return method, ", ".join(weights).replace("any:", "*") or "none", near


def _ports(ports: Iterable[PortRow]) -> str:
    def shown(port: PortRow) -> str:
        name = f"{port.name} " if port.name else ""
        node_port = f" (node port {port.node_port})" if port.node_port else ""
        return f"{name}{port.port}/{port.protocol}{node_port}"

    return ", ".join(map(shown, ports)) or "none"


def slice_words(before: Iterable[SliceRow], after: Iterable[SliceRow]) -> Iterator[str]:
    """How the endpoints of one object differ from what they were."""
    before, after = tuple(before), tuple(after)
    old = {each.address: each for row in before for each in row.endpoints}
    new = {each.address: each for row in after for each in row.endpoints}
    services = [{f"{row.namespace}/{row.service}" for row in rows} for rows in (before, after)]
    if before and after and services[0] != services[1]:
        yield f"belongs to Service {', '.join(services[1])}, before to {', '.join(services[0])}"
    ports = [dict.fromkeys(port for row in rows for port in row.ports) for rows in (before, after)]
    groups = [", ".join(sorted({row.group or "none" for row in rows})) for rows in (before, after)]
    if before and after and groups[0] != groups[1]:
        yield f"group: {groups[0]} -> {groups[1]}"
    if before and after and list(ports[0]) != list(ports[1]):
        texts = [
            ", ".join(f"{f'{p.name} ' if p.name else ''}{p.port}/{p.protocol}" for p in each) or "none"
            for each in ports
        ]
        yield f"ports of endpoints: {texts[0]} -> {texts[1]}"
    for address, row in new.items():
        if address not in old:
            yield f"endpoint {address} added ({_condition(row)}{f', node {row.node}' if row.node else ''})"
    for address in old:
        if address not in new:
            yield f"endpoint {address} removed"
    for address, row in new.items():
        if address in old and old[address] != row:
            yield f"endpoint {address} {', '.join(_endpoint(old[address], row))}"


def _condition(row: EndpointRow) -> str:
    found = Condition(row.conditions)
    if Condition.TERMINATING in found:
        return "terminating, still serving" if Condition.SERVING in found else "terminating"
    return "ready" if Condition.READY in found else "not ready"


def _endpoint(before: EndpointRow, after: EndpointRow) -> Iterator[str]:
    if before.conditions != after.conditions:
        yield f"is {_condition(after)}, was {_condition(before)}"
    places = ("node", before.node, after.node), ("zone", before.zone, after.zone)
    for name, old, new in (*places, ("Pods", before.pods, after.pods)):
        if old != new:
            yield f"{name} {old or 'not known'} -> {new or 'not known'}"
    hints = ("zones", before.zone_hints, after.zone_hints), ("nodes", before.node_hints, after.node_hints)
    for name, hinted, now in hints:
        if hinted != now:
            yield f"hints for {name} {', '.join(hinted) or 'none'} -> {', '.join(now) or 'none'}"


def _node(before: NodeRow | None, after: NodeRow | None) -> Iterator[str]:
    if after is None:
        if before is not None:
            yield f"Node {before.name} deleted"
        return
    if before is None:
        yield f"Node {after.name} is known: addresses {', '.join(after.addresses) or 'none'}"
        return
    lists = ("addresses", before.addresses, after.addresses), ("podCIDRs", before.pod_cidrs, after.pod_cidrs)
    for name, old, new in lists:
        if old != new:
            yield f"{name}: {', '.join(old) or 'none'} -> {', '.join(new) or 'none'}"
    if before.zone != after.zone:
        yield f"zone: {before.zone or 'none'} -> {after.zone or 'none'}"
    if before.uid != after.uid:
        yield "another Node object with this name"
    if before.leaving != after.leaving:
        yield "is leaving the cluster" if after.leaving else "is not leaving the cluster any more"


def _planned(past: Past, record: Planned) -> Iterator[str]:
    before = past.planned.get(record.node.family)
    if before is None:
        yield f"{record.mode} mode, node address {record.node.address}"
        return
    if before.mode != record.mode:
        yield f"mode: {before.mode} -> {record.mode}"
    for name in record.node.__struct_fields__:
        old, new = getattr(before.node, name), getattr(record.node, name)
        if old != new:
            yield f"{name}: {old} -> {new}"
    if before.addresses != record.addresses:
        yield f"addresses of this host: {', '.join(before.addresses)} -> {', '.join(record.addresses)}"
