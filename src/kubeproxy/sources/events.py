"""The parts of a list or watch of the Kubernetes API, around the objects.

Objects are not decoded here, so that one that cannot be decoded affects no other. Metadata is read without
checking its types: an object may be invalid in any field and must still be named.
"""

import msgspec
from msgspec import Raw, Struct, field


class WatchEvent(Struct, frozen=True, gc=False):
    """One line of a watch (meta/v1 WatchEvent)."""

    type: str
    object: Raw = Raw(b"{}")


class _Metadata(Struct, frozen=True, gc=False, rename="camel"):
    name: object = ""
    namespace: object = ""
    resource_version: object = ""
    annotations: object = None


class Head(Struct, frozen=True, gc=False):
    """The metadata of any object."""

    metadata: _Metadata = _Metadata()

    @property
    def key(self) -> str:
        """`namespace/name`; the namespace is empty if the kind has none."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def version(self) -> str:
        """The resourceVersion, empty if it is invalid."""
        version = self.metadata.resource_version
        return version if isinstance(version, str) else ""

    @property
    def ends_list(self) -> bool:
        """Whether it is the bookmark at the end of a streaming list (KEP-3157)."""
        annotations = self.metadata.annotations
        return isinstance(annotations, dict) and annotations.get("k8s.io/initial-events-end") == "true"


class _ListMeta(Struct, frozen=True, gc=False, rename="camel"):
    resource_version: str = ""
    more: str = field(default="", name="continue")


class Page(Struct, frozen=True, gc=False):
    """A list, or a page of one; `metadata.more` continues it.

    Attributes:
        kind: to be compared with what was asked for: a Status would be an empty list.
    """

    metadata: _ListMeta
    kind: str = ""
    items: list[Raw] | None = None


decode_event = msgspec.json.Decoder(WatchEvent).decode
decode_head = msgspec.json.Decoder(Head).decode
decode_page = msgspec.json.Decoder(Page).decode


def older(version: str, than: str) -> bool:
    """Compares two resourceVersions, which are decimal numbers (KEP-5504); others are never older."""
    return (len(version), version) < (len(than), than) and version.isdigit() and than.isdigit()
