"""The functions of computenetwork.dll and vmcompute.dll through ctypes.

What a function returns is a bare address, because ctypes would otherwise copy the text and lose the
address; it is copied and freed with CoTaskMemFree, whether the function failed or not. Functions return an
HRESULT as a number: the type HRESULT of ctypes raises an error before the error record can be read.

Source: computenetwork.h of the Windows SDK and of mingw-w64; Microsoft's HCN API reference.
"""

import ctypes
import sys
import uuid
from collections.abc import Callable, Mapping
from ctypes import POINTER, byref, c_int32, c_uint16, c_uint32, c_void_p
from typing import Any, Final

from kubeproxy.windows.calls import Entity, HnsNotice
from kubeproxy.windows.errors import E_NOTIMPL, HcnError, HnsMissingError, check
from kubeproxy.windows.text import narrow, wide

_SYSTEM32: Final = 0x800
"""LOAD_LIBRARY_SEARCH_SYSTEM32: the file is taken from no other folder."""


class Guid(ctypes.Structure):
    """A GUID as Windows stores it."""

    _fields_ = [
        ("data1", c_uint32),
        ("data2", c_uint16),
        ("data3", c_uint16),
        ("data4", ctypes.c_uint8 * 8),
    ]

    @classmethod
    def of(cls, text: str) -> "Guid":
        """The GUID of a text; "" is the one of zeros.

        Raises:
            ValueError: it is none.
        """
        return cls.from_buffer_copy(uuid.UUID(text).bytes_le if text else bytes(16))


CALLBACK: Final = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)(
    None, c_uint32, c_void_p, c_int32, c_void_p
)
"""HCN_NOTIFICATION_CALLBACK: the notification, its context, an HRESULT and a text that belongs to HNS."""

_TEXT: Final = POINTER(c_uint16)  # PCWSTR
_OUT: Final = POINTER(c_void_p)  # PWSTR*, HANDLE*
_ID: Final = POINTER(Guid)
_HANDLE: Final = c_void_p

PROTOTYPES: Final[Mapping[str, tuple[Any, ...]]] = {
    **{f"HcnEnumerate{entity.plural}": (_TEXT, _OUT, _OUT) for entity in Entity},
    **{f"HcnOpen{entity.value}": (_ID, _OUT, _OUT) for entity in Entity},
    **{f"HcnQuery{entity.value}Properties": (_HANDLE, _TEXT, _OUT, _OUT) for entity in Entity},
    **{f"HcnClose{entity.value}": (_HANDLE,) for entity in Entity},
    "HcnCreateEndpoint": (_HANDLE, _ID, _TEXT, _OUT, _OUT),
    "HcnCreateLoadBalancer": (_ID, _TEXT, _OUT, _OUT),
    "HcnModifyLoadBalancer": (_HANDLE, _TEXT, _OUT),
    "HcnDeleteEndpoint": (_ID, _OUT),
    "HcnDeleteLoadBalancer": (_ID, _OUT),
    "HcnRegisterServiceCallback": (CALLBACK, c_void_p, _OUT),
    "HcnUnregisterServiceCallback": (_HANDLE,),
}
"""The types of the arguments of what is used of computenetwork.dll; all of it returns an HRESULT."""

HNS_CALL: Final = (_TEXT, _TEXT, _TEXT, _OUT)
"""The types of the arguments of HNSCall in vmcompute.dll: method, path, request, response."""

_LATER: Final = frozenset(
    {"HcnModifyLoadBalancer", "HcnRegisterServiceCallback", "HcnUnregisterServiceCallback"}
)
"""What is missing in old versions, and can be done without."""

_MISSING: Final = (
    "{} is missing: this Windows has no Host Networking Service, or an old one; install the feature Containers"
    " (Install-WindowsFeature Containers) on Windows Server 2019 or newer"
)


class HcnBinding:
    """See `calls.Calls`."""

    def __init__(self, computenetwork: Any, vmcompute: Any, free: Callable[[c_void_p], object]) -> None:
        """Takes the functions from libraries.

        Args:
            computenetwork: has the functions of `PROTOTYPES` as attributes.
            vmcompute: has HNSCall as an attribute.
            free: CoTaskMemFree.

        Raises:
            HnsMissingError: a function is missing.
        """
        self._free = free
        self._functions = {
            name: found
            for name, types in PROTOTYPES.items()
            if (found := _function(computenetwork, name, types)) is not None
        }
        hns_call = _function(vmcompute, "HNSCall", HNS_CALL)
        if hns_call is None or (missing := PROTOTYPES.keys() - self._functions.keys() - _LATER):
            raise HnsMissingError(_MISSING.format("HNSCall" if hns_call is None else min(missing)))
        self._functions["HNSCall"] = hns_call
        self._callbacks: dict[int, object] = {}

    def version(self) -> str:
        """See `Calls`."""
        out = c_void_p()
        arguments = wide("GET"), wide("/globals/version"), wide("")
        hresult = self._functions["HNSCall"](*arguments, byref(out))
        response = self._take(out)
        check("HNSCall", hresult, "")
        return response

    def enumerate(self, entity: Entity, query: str) -> str:
        """See `Calls`."""
        return self._text(f"HcnEnumerate{entity.plural}", wide(query))

    def open(self, entity: Entity, ident: str) -> int:
        """See `Calls`."""
        return self._opened(f"HcnOpen{entity.value}", entity, byref(Guid.of(ident)))

    def query(self, entity: Entity, handle: int, query: str) -> str:
        """See `Calls`."""
        return self._text(f"HcnQuery{entity.value}Properties", c_void_p(handle), wide(query))

    def create_endpoint(self, network: int, ident: str, settings: str) -> int:
        """See `Calls`."""
        arguments = c_void_p(network), byref(Guid.of(ident)), wide(settings)
        return self._opened("HcnCreateEndpoint", Entity.ENDPOINT, *arguments)

    def create_load_balancer(self, ident: str, settings: str) -> int:
        """See `Calls`."""
        arguments = byref(Guid.of(ident)), wide(settings)
        return self._opened("HcnCreateLoadBalancer", Entity.LOAD_BALANCER, *arguments)

    def modify_load_balancer(self, handle: int, settings: str) -> None:
        """See `Calls`."""
        self._done("HcnModifyLoadBalancer", c_void_p(handle), wide(settings))

    def delete(self, entity: Entity, ident: str) -> None:
        """See `Calls`."""
        self._done(f"HcnDelete{entity.value}", byref(Guid.of(ident)))

    def close(self, entity: Entity, handle: int) -> None:
        """See `Calls`."""
        self._functions[f"HcnClose{entity.value}"](c_void_p(handle))

    def register(self, notified: Callable[[HnsNotice], None]) -> int:
        """See `Calls`."""

        def called(kind: int, _: int | None, hresult: int, data: int | None) -> None:
            notified(HnsNotice(kind, hresult & 0xFFFFFFFF, narrow(data) if data else ""))

        callback, handle = CALLBACK(called), c_void_p()
        hresult = self._found("HcnRegisterServiceCallback")(callback, None, byref(handle))
        check("HcnRegisterServiceCallback", hresult, "")
        self._callbacks[handle.value or 0] = callback  # it must exist as long as HNS may call it
        return handle.value or 0

    def unregister(self, handle: int) -> None:
        """See `Calls`."""
        check(
            "HcnUnregisterServiceCallback", self._found("HcnUnregisterServiceCallback")(c_void_p(handle)), ""
        )
        del self._callbacks[handle]

    def _text(self, name: str, *arguments: Any) -> str:
        """Calls a function that returns a text."""
        out = c_void_p()
        try:
            self._done(name, *arguments, byref(out))
        finally:
            text = self._take(out)
        return text

    def _opened(self, name: str, entity: Entity, *arguments: Any) -> int:
        """Calls a function that returns a handle."""
        handle = c_void_p()
        try:
            self._done(name, *arguments, byref(handle))
        except HcnError:
            if handle.value:
                self.close(entity, handle.value)
            raise
        return handle.value or 0

    def _done(self, name: str, *arguments: Any) -> None:
        """Calls a function whose last argument is the error record."""
        record = c_void_p()
        hresult = self._found(name)(*arguments, byref(record))
        check(name, hresult, self._take(record))

    def _found(self, name: str) -> Callable[..., int]:
        if (found := self._functions.get(name)) is None:
            raise HcnError(name, E_NOTIMPL, "computenetwork.dll does not have this function")
        return found

    def _take(self, out: c_void_p) -> str:
        """The text at an address, which is freed; "" for none."""
        if not out.value:
            return ""
        try:
            return narrow(out.value)
        finally:
            self._free(out)


def _function(library: Any, name: str, types: tuple[Any, ...]) -> Callable[..., int] | None:
    """A function with the types of its arguments; None if the library lacks it."""
    found = getattr(library, name, None)
    if found is not None:
        found.argtypes = types
        found.restype = c_int32
    return found


def system_binding() -> HcnBinding:
    """The libraries of this Windows.

    Raises:
        HnsMissingError: they are missing.
    """
    if sys.platform == "win32":
        try:
            computenetwork = ctypes.WinDLL("computenetwork.dll", winmode=_SYSTEM32)
            vmcompute = ctypes.WinDLL("vmcompute.dll", winmode=_SYSTEM32)
            ole32 = ctypes.WinDLL("ole32.dll", winmode=_SYSTEM32)
        except OSError as e:
            raise HnsMissingError(_MISSING.format(e)) from None
        free = ole32.CoTaskMemFree
        free.argtypes, free.restype = (c_void_p,), None
        return HcnBinding(computenetwork, vmcompute, free)
    raise HnsMissingError("this is not Windows")
