"""An HNS in memory, for tests and for simulated Windows nodes: the functions of the HCN API over documents.

It has the rules of `fake_rules` and the versions of `fake_profiles`. It counts calls and handles, any call
can be made to fail, HNS can stop and start, and other programs can change what it has. It is not used by
several threads at once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Final

import msgspec
from msgspec import Struct

from kubeproxy.windows import errors, fake_forms, fake_rules, values
from kubeproxy.windows.calls import Entity, HnsNotice, NoticeKind
from kubeproxy.windows.errors import HcnError
from kubeproxy.windows.fake_profiles import WS2025, Profile
from kubeproxy.windows.fake_rules import Document, RuleError
from kubeproxy.windows.fake_world import FakeWorld
from kubeproxy.windows.features import Feature, supports
from kubeproxy.windows.hcn import HostNetworking
from kubeproxy.windows.values import HnsVersion

_NETWORK, _ENDPOINT, _LOAD_BALANCER = Entity.NETWORK, Entity.ENDPOINT, Entity.LOAD_BALANCER
_MODIFY_EXISTS: Final = HnsVersion(15, 4)
_CHANGES: Final = ("HcnCreate", "HcnModify", "HcnDelete")


class FakeCall(Struct, frozen=True, gc=False):
    """A call that was made.

    Attributes:
        function: its name, e.g. "HcnCreateEndpoint".
        ident: the id it is about, or "".
        document: the request, or "".
        code: the HRESULT; 0: it was done.
    """

    function: str
    ident: str = ""
    document: str = ""
    code: int = 0

    @property
    def changes(self) -> bool:
        """Whether it creates, modifies or deletes something."""
        return self.function.startswith(_CHANGES)


class _Failure(Struct, gc=False):
    """Calls that fail: see `FakeHns.fail`."""

    pattern: str
    code: int
    left: int
    naming: str
    done: bool


class FakeHns(FakeWorld):
    """See `calls.Calls`.

    Attributes:
        calls: the calls that were made, the oldest first.
        interfere: called before each function with its name; a code other than 0 makes it fail.
    """

    def __init__(self, profile: Profile = WS2025) -> None:
        super().__init__(profile)
        self.calls: list[FakeCall] = []
        self.interfere: Callable[[str], int] = lambda _: 0
        self._handles: dict[int, tuple[Entity, str]] = {}
        self._void: set[int] = set()
        self._failures: list[_Failure] = []
        self._down = False
        self._numbers = 0
        self._ids = 0
        self._deletions = 0

    # The functions

    def version(self) -> str:
        """See `Calls`."""
        with self._call("HNSCall", "/globals/version"):
            version = self.profile.version
            output = {"Major": version.major, "Minor": version.minor}
            return msgspec.json.encode({"Success": True, "Output": output}).decode()

    def enumerate(self, entity: Entity, query: str) -> str:
        """See `Calls`."""
        with self._call(f"HcnEnumerate{entity.plural}", document=query):
            filters = fake_rules.filters(entity, query)
            found = [
                document["ID"]
                for document in self._state.objects[entity].values()
                if document["ID"] not in self._state.hidden and _matches(document, filters)
            ]
            return msgspec.json.encode([self._form(ident) for ident in found]).decode()

    def open(self, entity: Entity, ident: str) -> int:
        """See `Calls`."""
        with self._call(f"HcnOpen{entity.value}", ident):
            return self._handle(entity, self._state.existing(entity, ident)["ID"])

    def query(self, entity: Entity, handle: int, query: str) -> str:
        """See `Calls`."""
        with self._call(f"HcnQuery{entity.value}Properties", self._named(handle), query):
            fake_rules.filters(entity, query)
            document = self._state.existing(entity, self._held(entity, handle))
            return msgspec.json.encode(self._returned(document)).decode()

    def create_endpoint(self, network: int, ident: str, settings: str) -> int:
        """See `Calls`."""
        with self._call("HcnCreateEndpoint", ident, settings):
            of = self._state.existing(_NETWORK, self._held(_NETWORK, network))
            others = self._state.endpoints_of(of["ID"])
            document = fake_rules.new_endpoint(settings, of, others, self.profile)
            document["HostComputeNetwork"] = of["ID"]
            return self._handle(_ENDPOINT, self._created(_ENDPOINT, ident, document))

    def create_load_balancer(self, ident: str, settings: str) -> int:
        """See `Calls`."""
        with self._call("HcnCreateLoadBalancer", ident, settings):
            document = fake_rules.new_load_balancer(settings, self._state.objects[_ENDPOINT], self.profile)
            self._state.check_keys(document)
            return self._handle(_LOAD_BALANCER, self._created(_LOAD_BALANCER, ident, document))

    def modify_load_balancer(self, handle: int, settings: str) -> None:
        """See `Calls`."""
        with self._call("HcnModifyLoadBalancer", self._named(handle), settings):
            ident = self._held(_LOAD_BALANCER, handle)
            before = self._state.existing(_LOAD_BALANCER, ident)
            if self.profile.version < _MODIFY_EXISTS:
                raise RuleError(errors.E_NOTIMPL, "Not implemented")
            document = fake_rules.new_load_balancer(settings, self._state.objects[_ENDPOINT], self.profile)
            if sorted(fake_rules.keys(document)) != sorted(fake_rules.keys(before)):
                raise RuleError(errors.INVALID_POLICY, "a Modify cannot change address, port or protocol")
            settled = fake_rules.other_settings(document) == fake_rules.other_settings(before)
            if not settled and not self.profile.modifies_all:
                raise RuleError(
                    errors.INVALID_POLICY, "a Modify can change endpoints and source address only"
                )
            if not self.profile.modify_ignored and supports(
                self.profile.version, Feature.MODIFY_LOAD_BALANCER
            ):
                self._state.objects[_LOAD_BALANCER][ident] = document | {"ID": ident}

    def delete(self, entity: Entity, ident: str) -> None:
        """See `Calls`."""
        with self._call(f"HcnDelete{entity.value}", ident):
            document = self._state.existing(entity, ident)
            if entity is _LOAD_BALANCER:
                self._deletions += 1
                if self.profile.failing_delete and not self._deletions % self.profile.failing_delete:
                    raise RuleError(errors.E_FAIL, "Unspecified error")
                for key in fake_rules.keys(document):
                    self._state.leaked[key] = self.profile.leaked_ports
            elif self.profile.refuses_used and self._state.users(document["ID"]):
                raise RuleError(errors.ENTITY_HAS_REFERENCES, "a load balancer names the endpoint")
            self._state.drop(entity, document["ID"])

    def close(self, entity: Entity, handle: int) -> None:
        """See `Calls`.

        Raises:
            AssertionError: it is no open handle of an object of this kind.
        """
        assert self._handles.pop(handle)[0] is entity
        self._void.discard(handle)
        self.calls.append(FakeCall(f"HcnClose{entity.value}"))

    def register(self, notified: Callable[[HnsNotice], None]) -> int:
        """See `Calls`. It calls back during the call that causes the notification."""
        with self._call("HcnRegisterServiceCallback"):
            self._numbers += 1
            self._callbacks[self._numbers] = notified
            return self._numbers

    def unregister(self, handle: int) -> None:
        """See `Calls`."""
        with self._call("HcnUnregisterServiceCallback"):
            if self._callbacks.pop(handle, None) is None:
                raise RuleError(errors.E_HANDLE, "The handle is invalid.")

    # What tests see

    def hcn(self) -> HostNetworking:
        """A connection to it, see `hcn.Hcn`."""
        return HostNetworking(self)

    @property
    def open_handles(self) -> int:
        """How many handles are not closed; registrations of callbacks count."""
        return len(self._handles) + len(self._callbacks)

    def counts(self) -> Counter[str]:
        """How often each function was called."""
        return Counter(call.function for call in self.calls)

    def changes(self) -> list[FakeCall]:
        """The calls that create, modify or delete something; failed ones, too."""
        return [call for call in self.calls if call.changes]

    def fail(self, pattern: str, code: int, *, times: int = 1, naming: str = "", done: bool = False) -> None:
        """Makes the next calls of functions fail.

        Args:
            pattern: the function's name, with * for any part of it, e.g. "HcnCreate*".
            code: the HRESULT.
            times: how often; -1: until `heal`.
            naming: only calls whose id or document contains this text.
            done: the function does its work, and reports the failure all the same.
        """
        self._failures.append(_Failure(pattern, code, times, naming, done))

    def heal(self) -> None:
        """Ends all failures."""
        self._failures.clear()

    def stop(self) -> None:
        """Stops HNS: every call fails, and handles and registrations are void."""
        self._notify(NoticeKind.SERVICE_DISCONNECT, "")
        self._down = True
        self._void.update(self._handles)
        self._callbacks.clear()

    def start(self, *, empty: bool = False) -> None:
        """Starts HNS again.

        Args:
            empty: it has lost all load balancers and remote endpoints.
        """
        self._down = False
        if empty:
            for ident in list(self._state.objects[_LOAD_BALANCER]):
                self._state.drop(_LOAD_BALANCER, ident)
            for ident, document in list(self._state.objects[_ENDPOINT].items()):
                if document.get("Flags", 0) & values.REMOTE_ENDPOINT:
                    self._state.drop(_ENDPOINT, ident)

    # Inside

    @contextmanager
    def _call(self, function: str, ident: str = "", document: str = "") -> Iterator[None]:
        """Records a call, makes it fail if it shall, and turns broken rules into errors."""
        code, done = self._failure(function, f"{ident} {document}")
        first = self._numbers
        try:
            if code and not done:
                raise RuleError(code, "injected failure")  # noqa: TRY301 the error is recorded below
            yield
            if code:  # the caller gets no handle of what was made
                self._handles = {number: held for number, held in self._handles.items() if number <= first}
                raise RuleError(code, "injected failure")  # noqa: TRY301 the error is recorded below
        except RuleError as e:
            self.calls.append(FakeCall(function, ident, document, e.code))
            raise HcnError(function, e.code, str(e)) from None
        self.calls.append(FakeCall(function, ident, document))

    def _failure(self, function: str, about: str) -> tuple[int, bool]:
        if self._down:
            return errors.RPC_UNAVAILABLE, False
        if code := self.interfere(function):
            return code, False
        for failure in self._failures:
            if failure.left and fnmatchcase(function, failure.pattern) and failure.naming in about:
                failure.left -= 1
                return failure.code, failure.done
        return 0, False

    def _created(self, entity: Entity, ident: str, document: Document) -> str:
        return self._state.store(entity, ident if self.profile.keeps_ids else "", document)

    def _handle(self, entity: Entity, ident: str) -> int:
        self._numbers += 1
        self._handles[self._numbers] = entity, ident
        return self._numbers

    def _named(self, handle: int) -> str:
        return self._handles.get(handle, (None, ""))[1]

    def _held(self, entity: Entity, handle: int) -> str:
        """The id of the object that a handle is of."""
        of, ident = self._handles.get(handle, (None, ""))
        if of is not entity or handle in self._void:
            raise RuleError(errors.E_HANDLE, "The handle is invalid.")
        return ident

    def _form(self, text: str) -> str:
        return text.upper() if "case" in self.profile.forms else text

    def _returned(self, document: Document) -> Document:
        """A document as HNS returns it."""
        return fake_forms.returned(document, self.profile.forms)


def _matches(document: Document, filters: Mapping[str, str]) -> bool:
    fields = {"VirtualNetwork": "HostComputeNetwork"}
    return all(document.get(fields.get(name, name)) == text for name, text in filters.items())
