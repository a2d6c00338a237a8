"""What the HNS in memory has: its objects, and which load balancer has which address and port."""

import uuid
from collections.abc import Iterator
from typing import Final

from kubeproxy.windows import errors, fake_rules, values
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.fake_profiles import Profile
from kubeproxy.windows.fake_rules import Document, FrontKey, RuleError

_LAST_ID: Final = 0xFFFFFFFF


class FakeState:
    """The objects of an HNS.

    Attributes:
        profile: the version of Windows.
        objects: the documents, by kind and id.
        hidden: the ids of objects that are invisible.
        leaked: how many more attempts to use a key are refused.
        listening: protocol and port of programs that listen on this host.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.objects: dict[Entity, dict[str, Document]] = {entity: {} for entity in Entity}
        self.hidden: set[str] = set()
        self.leaked: dict[FrontKey, int] = {}
        self.listening: set[tuple[int, int]] = set()
        self._owners: dict[FrontKey, str] = {}
        self._numbers = 0

    def existing(self, entity: Entity, ident: str) -> Document:
        """An object.

        Raises:
            RuleError: there is none with this id.
        """
        document = self.objects[entity].get(fake_rules.identity(ident))
        if document is None or document["ID"] in self.hidden:
            code = errors.NETWORK_NOT_FOUND if entity is Entity.NETWORK else errors.NOT_FOUND
            raise RuleError(code, "Element not found.")
        return document

    def store(self, entity: Entity, ident: str, document: Document) -> str:
        """Stores an object; returns its id.

        Args:
            entity: its kind.
            ident: its id; "": the next one. They do not ascend, as those of HNS do not.
            document: its document.

        Raises:
            RuleError: the id is in use.
        """
        if ident:
            ident = fake_rules.identity(ident)
            if ident in self.objects[entity]:
                raise RuleError(errors.ALREADY_EXISTS, f"{ident} exists")
        else:
            self._numbers += 1
            ident = str(uuid.UUID(int=_LAST_ID - self._numbers << 96 | 0x4000_8000 << 64 | self._numbers))
        self.objects[entity][ident] = document | {"ID": ident}
        if entity is Entity.LOAD_BALANCER:
            self._owners.update(dict.fromkeys(fake_rules.keys(document), ident))
        return ident

    def drop(self, entity: Entity, ident: str) -> None:
        """Removes an object."""
        document = self.objects[entity].pop(ident)
        if entity is Entity.LOAD_BALANCER:
            for key in fake_rules.keys(document):
                if self._owners.get(key) == ident:
                    del self._owners[key]

    def check_keys(self, document: Document) -> None:
        """Checks that a new load balancer's addresses and ports are free.

        Raises:
            RuleError: one is in use.
        """
        for key in fake_rules.keys(document):
            if owner := self._owners.get(key):
                same = _settings(document) == _settings(self.objects[Entity.LOAD_BALANCER][owner])
                code = (same and self.profile.identical) or errors.PORT_ALREADY_EXISTS
                raise RuleError(code, f"load balancer {owner} has this address and port")
            if self.leaked.get(key):
                self.leaked[key] -= 1
                raise RuleError(errors.PORT_ALREADY_EXISTS, "the port is still reserved")
            if self.profile.listeners_block and key[1:3] in self.listening:
                raise RuleError(errors.PORT_ALREADY_EXISTS, "a program listens on the port")

    def endpoints_of(self, network: str) -> Iterator[Document]:
        """The endpoints of a network."""
        for document in list(self.objects[Entity.ENDPOINT].values()):
            if document["HostComputeNetwork"] == network:
                yield document

    def users(self, endpoint: str) -> list[str]:
        """The load balancers that name an endpoint."""
        return [
            ident
            for ident, document in self.objects[Entity.LOAD_BALANCER].items()
            if endpoint in map(values.same_id, document.get("HostComputeEndpoints") or ())
        ]


def _settings(document: Document) -> Document:
    ids = sorted(map(values.same_id, document.get("HostComputeEndpoints") or ()))
    return document | {"ID": "", "HostComputeEndpoints": ids}
