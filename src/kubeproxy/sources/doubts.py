"""Warnings about manifests with unknown fields, as `kubectl --validate=warn` reports them.

A field that its kind does not have is ignored by the decoders, as by Kubernetes', so a misspelt one silently
has no effect. Each is logged once: with the file, the object, the path of the field, and the field that was
probably meant. Likewise an EndpointSlice without the label that names its Service.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from kubeproxy.api import types
from kubeproxy.figures import Figure
from kubeproxy.log import ObjectRef
from kubeproxy.sources.documents import Decode

log = logging.getLogger(__name__)

MOST_FIELDS: Final = 20
"""How many fields of one object are logged."""

MOST_OBJECTS: Final = 20
"""How many objects of one file are logged each time it is read; it may have thousands alike."""

Name = tuple[str, str, str]


class Doubts:
    """The warnings, by file."""

    def __init__(self) -> None:
        self._files: dict[Path, Mapping[Name, Sequence[str]]] = {}

    def report(self, path: Path, found: Mapping[Name, Sequence[str]]) -> None:
        """Logs the new warnings about a file that was read.

        Args:
            path: the file.
            found: the warnings about its objects, from `of`.
        """
        before = self._files.get(path, {})
        new = [
            (name, fresh)
            for name, messages in found.items()
            if (fresh := [message for message in messages if message not in before.get(name, ())])
        ]
        for (kind, namespace, own), messages in new[:MOST_OBJECTS]:
            about = ObjectRef(types.printable(namespace), types.printable(own))
            for message in messages:
                log.warning(
                    "%(file)s: %(kind)s %(object)s: %(reason)s",
                    {"file": path, "kind": kind, "object": about, "reason": message},
                )
        if (more := len(new) - MOST_OBJECTS) > 0:
            log.warning(
                "%(file)s: %(count)d more objects have fields that are ignored", {"file": path, "count": more}
            )
        if found:
            self._files[path] = found
        else:
            self._files.pop(path, None)

    def forget(self, path: Path) -> None:
        """A file was deleted."""
        self._files.pop(path, None)

    def figures(self) -> Iterable[Figure]:
        """The metric."""
        yield Figure(
            "kubeproxy_manifest_objects_with_unknown_fields",
            "gauge",
            "Objects in manifests that have unknown fields, or lack what makes them useful.",
            sum(map(len, self._files.values())),
        )


def of(decode: Decode, obj: types.Object) -> Sequence[str]:
    """The warnings about an object.

    Args:
        decode: the object as it is written.
        obj: the object it makes.
    """
    unknown = list(islice(decode.unknown(), MOST_FIELDS + 1))
    found = [f'unknown field "{field.path}" is ignored{field.hint}' for field in unknown[:MOST_FIELDS]]
    if len(unknown) > MOST_FIELDS:
        found.append("more unknown fields are ignored")
    if isinstance(obj, types.EndpointSlice) and not (obj.metadata.labels and obj.metadata.labels.service):
        found.append("it has no label kubernetes.io/service-name, so it belongs to no Service and is ignored")
    return found
