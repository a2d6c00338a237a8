"""The error codes of HNS: their names, what kind of trouble they are, and what to do about them.

A code is an HRESULT. Those of HNS itself have facility 0x3B; Win32 errors have facility 7 and their number in
the low 16 bits. HNS adds a text, in a JSON document that may be missing or broken.

Source: HCN HRESULT, winerror.h; what is known about when they occur is from public reports.
"""

from enum import Enum
from typing import Final

import msgspec
from msgspec import Struct


class HcnTrouble(Enum):
    """What an error means for a caller."""

    REFUSED = "refused"
    """The request is not accepted; others may be. Retry later."""
    NOT_FOUND = "not found"
    """The object, or one that it names, does not exist: what the caller knows is out of date."""
    EXISTS = "exists"
    """There is such an object already: list again."""
    AWAY = "away"
    """HNS does not run, starts or stops. Nothing is known about any object; retry all."""
    UNSUPPORTED = "unsupported"
    """This HNS does not have the function."""
    DAMAGED = "damaged"
    """The object is damaged: replace it."""
    DENIED = "denied"
    """The process may not use HNS."""


E_NOTIMPL: Final = 0x80004001
E_FAIL: Final = 0x80004005
E_HANDLE: Final = 0x80070006
E_ACCESSDENIED: Final = 0x80070005
E_INVALIDARG: Final = 0x80070057
NOT_FOUND: Final = 0x80070490
ALREADY_EXISTS: Final = 0x800700B7
NETWORK_NOT_FOUND: Final = 0x803B0001
ENDPOINT_NOT_FOUND: Final = 0x803B0002
SUBNET_NOT_FOUND: Final = 0x803B0005
PORT_NOT_FOUND: Final = 0x803B0007
INVALID_POLICY: Final = 0x803B000D
INVALID_POLICY_TYPE: Final = 0x803B000E
INVALID_REMOTE_ENDPOINT_OPERATION: Final = 0x803B000F
PORT_ALREADY_EXISTS: Final = 0x803B0013
REQUEST_UNSUPPORTED: Final = 0x803B0015
DEGRADED_OPERATION: Final = 0x803B0017
GUID_CONVERSION_FAILURE: Final = 0x803B0019
INVALID_JSON: Final = 0x803B001B
INVALID_IP: Final = 0x803B001E
MANAGER_STOPPED: Final = 0x803B0020
ENTITY_HAS_REFERENCES: Final = 0x803B002C
INVALID_INTERNAL_PORT: Final = 0x803B002D
ADDR_INVALID_OR_RESERVED: Final = 0x803B002F
USED_AFTER_UNLOAD: Final = 0x803B0031
RPC_UNAVAILABLE: Final = 0x800706BA
RPC_FAILED: Final = 0x800706BE
RPC_NOT_EXECUTED: Final = 0x800706BF
RPC_NO_ENDPOINT: Final = 0x800706D9
BAD_DOCUMENT: Final = 0x8007000D
"""ERROR_INVALID_DATA: used here for documents of HNS that cannot be read."""

_WIN32: Final = 0x80070000
_RPC: Final = range(1700, 1800)


class ErrorCode(Struct, frozen=True, gc=False):
    """What is known about a code.

    Attributes:
        name: its name in Microsoft's documentation.
        trouble: what it means for a caller.
        advice: what to do about it, for an operator.
    """

    name: str
    trouble: HcnTrouble
    advice: str = ""


_START = "it is programmed as soon as HNS (the Windows service `hns`) answers"
_RETRIED = "it is retried"
_DEFECT = "this is a defect of this program, please report it"

CODES: Final = {
    E_NOTIMPL: ErrorCode("E_NOTIMPL", HcnTrouble.UNSUPPORTED, "this HNS does not have the function"),
    E_FAIL: ErrorCode("E_FAIL", HcnTrouble.REFUSED, _RETRIED),
    E_HANDLE: ErrorCode("E_HANDLE", HcnTrouble.AWAY, _START),
    E_ACCESSDENIED: ErrorCode(
        "E_ACCESSDENIED",
        HcnTrouble.DENIED,
        "run as NT AUTHORITY\\SYSTEM or as an administrator; in a container, as HostProcess",
    ),
    E_INVALIDARG: ErrorCode("E_INVALIDARG", HcnTrouble.REFUSED, _DEFECT),
    BAD_DOCUMENT: ErrorCode("ERROR_INVALID_DATA", HcnTrouble.REFUSED, _RETRIED),
    NOT_FOUND: ErrorCode("ERROR_NOT_FOUND", HcnTrouble.NOT_FOUND, "another program removed it; " + _RETRIED),
    ALREADY_EXISTS: ErrorCode("ERROR_ALREADY_EXISTS", HcnTrouble.EXISTS, "the existing one is looked up"),
    NETWORK_NOT_FOUND: ErrorCode(
        "HCN_E_NETWORK_NOT_FOUND", HcnTrouble.NOT_FOUND, "the network plug-in must create the network"
    ),
    ENDPOINT_NOT_FOUND: ErrorCode(
        "HCN_E_ENDPOINT_NOT_FOUND", HcnTrouble.NOT_FOUND, "an endpoint was removed; " + _RETRIED
    ),
    SUBNET_NOT_FOUND: ErrorCode(
        "HCN_E_SUBNET_NOT_FOUND", HcnTrouble.REFUSED, "the address is in no subnet of the HNS network"
    ),
    PORT_NOT_FOUND: ErrorCode(
        "HCN_E_PORT_NOT_FOUND", HcnTrouble.REFUSED, "a local endpoint is not attached yet; " + _RETRIED
    ),
    INVALID_POLICY: ErrorCode("HCN_E_INVALID_POLICY", HcnTrouble.REFUSED, _DEFECT),
    INVALID_POLICY_TYPE: ErrorCode("HCN_E_INVALID_POLICY_TYPE", HcnTrouble.REFUSED, _DEFECT),
    INVALID_REMOTE_ENDPOINT_OPERATION: ErrorCode(
        "HCN_E_INVALID_REMOTE_ENDPOINT_OPERATION", HcnTrouble.REFUSED, _RETRIED
    ),
    PORT_ALREADY_EXISTS: ErrorCode(
        "HCN_E_PORT_ALREADY_EXISTS",
        HcnTrouble.EXISTS,
        "another load balancer or a listening program has this address and port (Get-HnsPolicyList shows load"
        " balancers, Get-NetTCPConnection programs)",
    ),
    REQUEST_UNSUPPORTED: ErrorCode(
        "HCN_E_REQUEST_UNSUPPORTED", HcnTrouble.UNSUPPORTED, "this HNS does not have the function"
    ),
    DEGRADED_OPERATION: ErrorCode("HCN_E_DEGRADED_OPERATION", HcnTrouble.DAMAGED, "the object is replaced"),
    GUID_CONVERSION_FAILURE: ErrorCode("HCN_E_GUID_CONVERSION_FAILURE", HcnTrouble.REFUSED, _DEFECT),
    INVALID_JSON: ErrorCode("HCN_E_INVALID_JSON", HcnTrouble.REFUSED, _DEFECT),
    INVALID_IP: ErrorCode("HCN_E_INVALID_IP", HcnTrouble.REFUSED, "HNS does not accept the address"),
    MANAGER_STOPPED: ErrorCode("HCN_E_MANAGER_STOPPED", HcnTrouble.AWAY, _START),
    ENTITY_HAS_REFERENCES: ErrorCode(
        "HCN_E_ENTITY_HAS_REFERENCES", HcnTrouble.REFUSED, "a load balancer still uses it; " + _RETRIED
    ),
    INVALID_INTERNAL_PORT: ErrorCode(
        "HCN_E_INVALID_INTERNAL_PORT", HcnTrouble.REFUSED, "the port must not be 0"
    ),
    ADDR_INVALID_OR_RESERVED: ErrorCode(
        "HCN_E_ADDR_INVALID_OR_RESERVED",
        HcnTrouble.REFUSED,
        "HNS does not accept the address; for the source VIP, choose another one with --source-vip",
    ),
    USED_AFTER_UNLOAD: ErrorCode("HCN_E_USED_AFTER_UNLOAD", HcnTrouble.AWAY, _START),
    RPC_UNAVAILABLE: ErrorCode("RPC_S_SERVER_UNAVAILABLE", HcnTrouble.AWAY, _START),
    RPC_FAILED: ErrorCode("RPC_S_CALL_FAILED", HcnTrouble.AWAY, _START),
    RPC_NOT_EXECUTED: ErrorCode("RPC_S_CALL_FAILED_DNE", HcnTrouble.AWAY, _START),
    RPC_NO_ENDPOINT: ErrorCode("EPT_S_NOT_REGISTERED", HcnTrouble.AWAY, _START),
}


def code_of(hresult: int) -> ErrorCode:
    """What is known about a code. All errors of RPC mean the same; what is unknown is a refusal."""
    hresult &= 0xFFFFFFFF
    if known := CODES.get(hresult):
        return known
    if number := win32(hresult):
        return ErrorCode(
            f"Win32 error {number}",
            HcnTrouble.AWAY if number in _RPC else HcnTrouble.REFUSED,
            _START if number in _RPC else _RETRIED,
        )
    return ErrorCode(f"HRESULT {hresult:#010x}", HcnTrouble.REFUSED, _RETRIED)


def win32(hresult: int) -> int:
    """The Win32 error number in an HRESULT; 0 if it holds none."""
    return hresult & 0xFFFF if hresult & 0xFFFF0000 == _WIN32 else 0


class HcnError(Exception):
    """HNS did not do what was asked.

    Attributes:
        call: the function, e.g. "HcnCreateLoadBalancer".
        code: the HRESULT, as an unsigned number.
        text: the message of HNS, or "".
    """

    def __init__(self, call: str, code: int, text: str = "") -> None:
        self.call = call
        self.code = code & 0xFFFFFFFF
        self.text = text
        self._known = code_of(code)
        words = f": {text}" if text else ""
        advice = f"; {self._known.advice}" if self._known.advice else ""
        super().__init__(f"{call}: {self._known.name} {self.code:#010x}{words}{advice}")

    @property
    def trouble(self) -> HcnTrouble:
        """What it means for a caller."""
        return self._known.trouble

    @property
    def name(self) -> str:
        """The name of the code."""
        return self._known.name

    @property
    def advice(self) -> str:
        """What to do about it, or ""."""
        return self._known.advice


class HnsMissingError(Exception):
    """This Windows has no HNS that can be used. The message says what is missing, and the remedy."""


class ErrorRecord(Struct, frozen=True, gc=False, rename="pascal"):
    """The document that HNS adds to an error: {"Success":false,"Error":"text","ErrorCode":2151350279}."""

    success: bool = True
    error: str = ""
    error_code: int = 0


def check(call: str, hresult: int, record: str) -> None:
    """Raises the error that a function returned, if any.

    Args:
        call: the function.
        hresult: what it returned, signed or unsigned.
        record: the error record, or "". One that is not empty is an error even if the HRESULT is not.

    Raises:
        HcnError: the function failed.
    """
    failed = bool(hresult & 0x80000000)
    if not failed and not record:
        return
    try:
        read = msgspec.json.decode(record, type=ErrorRecord) if record else ErrorRecord()
        text, code = " ".join(read.error.split()), read.error_code
    except msgspec.MsgspecError:
        text, code = " ".join(record.split()), 0
    raise HcnError(call, hresult if failed else code or E_FAIL, text[:1000])
