"""The HNS in memory behind C functions, as computenetwork.dll has them: they get registers and raw memory.

The signatures are written from Microsoft's reference, not from the table in `binding`, so that a mistake there
is not repeated here. Handles have 64 bits, texts are allocated and must be freed.
"""

import ctypes
import uuid
from collections.abc import Callable
from ctypes import c_int32, c_uint32, c_void_p
from types import SimpleNamespace
from typing import Any

import msgspec

from kubeproxy.windows.binding import HcnBinding
from kubeproxy.windows.calls import Entity, HnsNotice
from kubeproxy.windows.errors import HcnError
from kubeproxy.windows.fake import FakeHns

HANDLES = 0x7FFD_0000_0000
"""Handles are as large as pointers."""

CONTEXT = None

_NOTIFICATION = ctypes.CFUNCTYPE(None, c_uint32, c_void_p, c_int32, c_void_p)


class Heap:
    """Allocated texts, by address."""

    def __init__(self) -> None:
        self.texts: dict[int, Any] = {}
        self.freed = 0

    def give(self, text: str, out: int) -> None:
        """Allocates a text and stores its address at an address."""
        data = text.encode("utf-16-le") + b"\0\0"
        buffer = (ctypes.c_char * (len(data) + 8)).from_buffer_copy(data + b"\xaa" * 8)
        self.texts[ctypes.addressof(buffer)] = buffer
        c_void_p.from_address(out).value = ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        """CoTaskMemFree; NULL is allowed."""
        if address:
            del self.texts[address]
            self.freed += 1


def text_at(address: int) -> str:
    """A text that ends with a 0, read one character at a time."""
    units: list[int] = []
    while unit := ctypes.c_uint16.from_address(address + 2 * len(units)).value:
        units.append(unit)
    return b"".join(unit.to_bytes(2, "little") for unit in units).decode("utf-16-le")


def id_at(address: int) -> str:
    """A GUID; "" for the one of zeros."""
    data = ctypes.string_at(address, 16)
    return str(uuid.UUID(bytes_le=data)) if any(data) else ""


class CHns:
    """C functions over an HNS in memory.

    Attributes:
        heap: the texts it gave out.
        record: makes the error record of an error; None: there is none.
    """

    def __init__(self, hns: FakeHns) -> None:
        self.hns = hns
        self.heap = Heap()
        self.record: Callable[[HcnError], str | None] = error_record
        self._kept: list[Any] = []
        self._callbacks: dict[int, int] = {}
        self.computenetwork = SimpleNamespace()
        self.vmcompute = SimpleNamespace(HNSCall=self._function(self._hns_call, *[c_void_p] * 4))
        for entity in Entity:
            self._add_functions(entity)
        add = self._add
        add("HcnCreateEndpoint", self._create_endpoint, *[c_void_p] * 5)
        add("HcnCreateLoadBalancer", self._create_load_balancer, *[c_void_p] * 4)
        add("HcnModifyLoadBalancer", self._modify, *[c_void_p] * 3)
        add("HcnRegisterServiceCallback", self._register, *[c_void_p] * 3)
        add("HcnUnregisterServiceCallback", self._unregister, c_void_p)

    def bound(self) -> HcnBinding:
        """The binding under test."""
        free = self._function(self.heap.free, c_void_p, result=None)
        return HcnBinding(self.computenetwork, self.vmcompute, free)

    def _add(self, name: str, function: Callable[..., int], *types: Any) -> None:
        setattr(self.computenetwork, name, self._function(function, *types))

    def _function(self, function: Callable[..., Any], *types: Any, result: Any = c_int32) -> Any:
        """A function pointer that does not know its arguments, as one of a library."""
        made = ctypes.CFUNCTYPE(result, *types)(function)
        self._kept.append(made)
        return ctypes.CFUNCTYPE(result)(ctypes.cast(made, c_void_p).value or 0)

    def _add_functions(self, entity: Entity) -> None:
        hns = self.hns

        def enumerate_(query: int, out: int, record: int) -> int:
            return self._text(out, record, lambda: hns.enumerate(entity, text_at(query)))

        def open_(ident: int, out: int, record: int) -> int:
            return self._handle(out, record, lambda: hns.open(entity, id_at(ident)))

        def query_(handle: int, query: int, out: int, record: int) -> int:
            return self._text(out, record, lambda: hns.query(entity, handle - HANDLES, text_at(query)))

        def delete(ident: int, record: int) -> int:
            return self._call(record, lambda: hns.delete(entity, id_at(ident)))

        def close(handle: int) -> int:
            hns.close(entity, handle - HANDLES)
            return 0

        self._add(f"HcnEnumerate{entity.plural}", enumerate_, *[c_void_p] * 3)
        self._add(f"HcnOpen{entity.value}", open_, *[c_void_p] * 3)
        self._add(f"HcnQuery{entity.value}Properties", query_, *[c_void_p] * 4)
        self._add(f"HcnDelete{entity.value}", delete, *[c_void_p] * 2)
        self._add(f"HcnClose{entity.value}", close, c_void_p)

    def _hns_call(self, method: int, path: int, request: int, out: int) -> int:
        assert (text_at(method), text_at(path), text_at(request)) == ("GET", "/globals/version", "")
        return self._text(out, 0, self.hns.version)

    def _create_endpoint(self, network: int, ident: int, settings: int, out: int, record: int) -> int:
        made = lambda: self.hns.create_endpoint(network - HANDLES, id_at(ident), text_at(settings))  # noqa: E731
        return self._handle(out, record, made)

    def _create_load_balancer(self, ident: int, settings: int, out: int, record: int) -> int:
        made = lambda: self.hns.create_load_balancer(id_at(ident), text_at(settings))  # noqa: E731
        return self._handle(out, record, made)

    def _modify(self, handle: int, settings: int, record: int) -> int:
        return self._call(record, lambda: self.hns.modify_load_balancer(handle - HANDLES, text_at(settings)))

    def _register(self, callback: int, context: int | None, out: int) -> int:
        assert context is CONTEXT

        def notified(notice: HnsNotice) -> None:
            data = ctypes.create_string_buffer(notice.data.encode("utf-16-le") + b"\0\0")
            where = ctypes.addressof(data) if notice.data else None
            _NOTIFICATION(callback)(notice.kind, context, c_int32(notice.code).value, where)
            ctypes.memset(data, 0xFF, len(data))  # it belongs to HNS, which uses it for other things

        return self._handle(out, 0, lambda: self.hns.register(notified))

    def _unregister(self, handle: int) -> int:
        return self._call(0, lambda: self.hns.unregister(handle - HANDLES))

    def _call(self, record: int, call: Callable[[], object]) -> int:
        try:
            call()
        except HcnError as e:
            text = self.record(e)
            if record and text is not None:
                self.heap.give(text, record)
            return c_int32(e.code).value
        return 0

    def _text(self, out: int, record: int, call: Callable[[], str]) -> int:
        return self._call(record, lambda: self.heap.give(call(), out))

    def _handle(self, out: int, record: int, call: Callable[[], int]) -> int:
        def store() -> None:
            c_void_p.from_address(out).value = call() + HANDLES

        return self._call(record, store)


def error_record(error: HcnError) -> str:
    """The document of an error as HNS makes it."""
    document = {"Success": False, "Error": error.text, "ErrorCode": error.code}
    return msgspec.json.encode(document).decode()
