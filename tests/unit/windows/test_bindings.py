"""The bindings against functions that lay out memory as Windows documents it, byte by byte."""

import ctypes
import errno
import logging
import socket
import struct
import threading
from ctypes import c_int32, c_size_t, c_uint8, c_uint16, c_uint32, c_void_p
from ipaddress import ip_address
from typing import Any

import pytest

from kubeproxy.windows import console, dll
from kubeproxy.windows.adapters import AdapterAddresses, IPHelper, UnicastAddress
from kubeproxy.windows.event_log import EventLog
from kubeproxy.windows.instance import NAME, NamedSection
from kubeproxy.windows.jobs import Job
from kubeproxy.windows.processes import SystemProcesses
from kubeproxy.windows.service_control import (
    INTERROGATE,
    NOT_A_SERVICE,
    RUNNING,
    SHUTDOWN,
    START_PENDING,
    STOP,
    STOP_PENDING,
    STOPPED,
    NotAServiceError,
    ServiceEntry,
    WindowsService,
    WindowsServiceStatus,
)
from kubeproxy.windows.text import narrow, wide
from tests.unit.windows.stub import StubLibrary

# Text and errors


@pytest.mark.parametrize("text", ["", "cbr0", "Übung €", "\N{GRINNING FACE}"])
def test_text_is_utf16_with_a_terminating_zero(text: str) -> None:
    made = wide(text)
    assert bytes(made) == text.encode("utf-16-le") + b"\0\0"
    assert narrow(ctypes.addressof(made)) == text


def test_no_address_is_no_text() -> None:
    assert narrow(None) == narrow(0) == ""


def test_elsewhere_there_are_no_libraries() -> None:
    with pytest.raises(OSError, match=r"iphlpapi\.dll is a library of Windows"):
        dll.load("iphlpapi.dll")


def test_a_missing_function_is_an_error_with_its_name() -> None:
    with pytest.raises(OSError, match="no function NoSuchThing"):
        dll.SystemLibrary(object(), lambda: 0).function("NoSuchThing", None)


def test_errors_have_the_number_of_windows_and_that_of_c() -> None:
    assert dll.error(5, "OpenProcess").errno == errno.EACCES
    assert "OpenProcess" in str(dll.error(1450, "OpenProcess"))
    assert "Windows error 1450" in str(dll.error(1450, "OpenProcess"))


# Adapters


def _offsets(kind: type[ctypes.Structure], *names: str) -> list[int]:
    return [getattr(kind, name).offset for name in names]


def test_the_structures_have_the_layout_of_64_bit_windows() -> None:
    names = ("index", "next", "first_unicast", "friendly_name", "physical_address", "physical_address_length")
    assert _offsets(AdapterAddresses, *names) == [4, 8, 24, 72, 80, 88]
    assert _offsets(AdapterAddresses, "flags", "mtu", "kind", "status", "index6") == [92, 96, 100, 104, 108]
    assert _offsets(UnicastAddress, "next", "address", "dad_state", "prefix") == [8, 16, 40, 56]
    assert ctypes.sizeof(ServiceEntry) == 16
    assert ctypes.sizeof(WindowsServiceStatus) == 28


def _unicast(at: int, following: int, sockaddr: int, size: int, prefix: int) -> bytes:
    body = struct.pack("<IIQQi4x", 64, 0, following, sockaddr, size)
    return body + struct.pack("<IIIIII", 0, 0, 4, 0, 0, 0) + struct.pack("<B7x", prefix)


class Memory:
    """Addresses of the blocks of memory that a call writes, one after the other."""

    def __init__(self, base: int, size: int) -> None:
        self.base, self.size, self.used = base, size, 0

    def put(self, block: bytes) -> int:
        at = self.base + self.used
        ctypes.memmove(at, block, len(block))
        self.used += -(-len(block) // 8) * 8
        assert self.used <= self.size
        return at


def _adapter_block(
    memory: Memory, index: int, name: str, mac: bytes, addresses: list[str], *, following: int, kind: int = 6
) -> int:
    first = 0
    for address in reversed(addresses):
        text, _, prefix = address.partition("/")
        packed = ip_address(text).packed
        if len(packed) == 4:
            sockaddr = struct.pack("<HH4s8x", 2, 0, packed)
        else:
            sockaddr = struct.pack("<HHI16sI", 23, 0, 0, packed, index)
        where = memory.put(sockaddr)
        first = memory.put(_unicast(0, first, where, len(sockaddr), int(prefix)))
    friendly = memory.put(bytes(wide(name)))
    block = struct.pack("<IIQQQQQQQQQ", 448, index, following, 0, first, 0, 0, 0, 0, 0, friendly)
    block += mac.ljust(8, b"\0") + struct.pack("<IIIIII", len(mac), 0, 1500, kind, 1, index)
    return memory.put(block.ljust(448, b"\0"))


def _helper(sizes: list[int]) -> tuple[StubLibrary, list[Any]]:
    """A library with two interfaces, whose list needs 8 KiB more than was given at first."""
    stub = StubLibrary()
    callbacks: list[Any] = []

    @stub.add(c_uint32, c_uint32, c_uint32, c_void_p, c_void_p, ctypes.POINTER(c_uint32))
    def GetAdaptersAddresses(family, flags, reserved, memory, size):
        assert (family, flags, reserved) == (0, 0x2 | 0x4 | 0x8, None)
        sizes.append(size[0])
        if size[0] < 24 * 1024:
            size[0] = 24 * 1024
            return 111
        # The list begins at the memory's first byte, so room is left for the first interface.
        rest = Memory(memory + 448, size[0] - 448)
        second = _adapter_block(rest, 1, "Loopback", b"", ["127.0.0.1/8", "::1/128"], following=0, kind=24)
        first = _adapter_block(
            rest,
            7,
            "vEthernet (Ethernet)",
            bytes.fromhex("00155d0000ab"),
            ["192.0.2.1/24", "2001:db8::1/64", "fe80::1/64"],
            following=second,
        )
        ctypes.memmove(memory, first, 448)
        return 0

    @stub.add(c_uint32, c_uint16, c_void_p, c_void_p, c_uint8, ctypes.POINTER(c_void_p))
    def NotifyUnicastIpAddressChange(family, function, context, at_once, handle):
        assert (family, at_once) == (0, 0)
        callbacks.append(ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_uint32)(function))
        handle[0] = 77
        return 0

    @stub.add(c_uint32, c_void_p)
    def CancelMibChangeNotify2(handle):
        assert handle == 77
        callbacks.clear()
        return 0

    return stub, callbacks


def test_interfaces_are_read_with_all_their_addresses() -> None:
    sizes: list[int] = []
    stub, _ = _helper(sizes)
    ethernet, loopback = IPHelper(stub.library).list()
    assert sizes == [16 * 1024, 24 * 1024]
    assert (ethernet.number, ethernet.name, ethernet.mac) == (7, "vEthernet (Ethernet)", "00-15-5D-00-00-AB")
    assert (ethernet.mtu, ethernet.loopback, ethernet.up) == (1500, False, True)
    assert [(str(ip_address(packed)), prefix) for packed, prefix in ethernet.addresses] == [
        ("192.0.2.1", 24),
        ("2001:db8::1", 64),
        ("fe80::1", 64),
    ]
    assert (loopback.mac, loopback.loopback) == ("", True)
    assert [packed for packed, _ in loopback.addresses] == [
        socket.inet_pton(socket.AF_INET, "127.0.0.1"),
        socket.inet_pton(socket.AF_INET6, "::1"),
    ]


@pytest.mark.parametrize(("code", "expected"), [(232, []), (87, OSError), (111, OSError)])
def test_no_interfaces_and_errors(code: int, expected: object) -> None:
    stub, _ = _helper([])

    @stub.add(c_uint32, c_uint32, c_uint32, c_void_p, c_void_p, ctypes.POINTER(c_uint32))
    def GetAdaptersAddresses(*_arguments):
        return code

    helper = IPHelper(stub.library)
    if expected == []:
        assert helper.list() == []
    else:
        with pytest.raises(OSError, match="GetAdaptersAddresses"):
            helper.list()


def test_a_change_of_an_address_calls_back_until_the_end() -> None:
    stub, callbacks = _helper([])
    called: list[int] = []
    with IPHelper(stub.library).watch(lambda: called.append(1)):
        (function,) = callbacks
        thread = threading.Thread(target=function, args=(None, None, 1))
        thread.start()
        thread.join()
        assert called == [1]
    assert not callbacks


# The console


def _console() -> tuple[StubLibrary, list[Any]]:
    stub = StubLibrary()
    handlers: list[Any] = []

    @stub.add(c_int32, c_void_p, c_int32)
    def SetConsoleCtrlHandler(function, add):
        if add:
            handlers.append(ctypes.CFUNCTYPE(c_int32, c_uint32)(function))
        else:
            handlers.clear()
        return 1

    return stub, handlers


def test_the_console_ends_the_program_and_waits_for_its_end() -> None:
    stub, handlers = _console()
    asked: list[int] = []
    results: list[int] = []
    with console.handled(asked.append, library=stub.library):
        (handler,) = handlers
        assert handler(console.CTRL_C) == handler(console.CTRL_BREAK) == 1
        assert handler(console.LOGGED_OFF) == 0
        waiting = threading.Thread(target=lambda: results.append(handler(console.SHUT_DOWN)))
        waiting.start()
        while asked[-1] != console.SHUT_DOWN:
            pass
        assert not results  # Windows would end the process now
    waiting.join()
    assert results == [1]
    assert asked == [console.CTRL_C, console.CTRL_BREAK, console.SHUT_DOWN]
    assert not handlers


# The service control manager


class Manager(StubLibrary):
    """Starts the service in a thread, and sends it controls from the first one, as Windows does.

    Attributes:
        states: what the service reported: state, controls that it accepts, exit codes.
    """

    def __init__(self, controls: list[int], *, started: bool = True, early: int = 0) -> None:
        super().__init__()
        self.states: list[tuple[int, int, int, int]] = []
        self.answers: list[int] = []
        self.running = threading.Event()
        handlers: list[Any] = []

        @self.add(c_int32, c_void_p)
        def StartServiceCtrlDispatcherW(table):
            if not started:
                return self.fail(NOT_A_SERVICE)
            name, main, end, no_main = struct.unpack("<QQQQ", ctypes.string_at(table, 32))
            assert (narrow(name), end, no_main) == ("kube-proxy", 0, 0)
            thread = threading.Thread(target=ctypes.CFUNCTYPE(None, c_uint32, c_void_p)(main), args=(0, None))
            thread.start()
            self.running.wait()
            for control in controls:
                self.answers.append(handlers[0](control, 0, None, None))
            thread.join()
            return 1

        @self.add(c_void_p, c_void_p, c_void_p, c_void_p)
        def RegisterServiceCtrlHandlerExW(name, function, context):
            assert narrow(name) == "kube-proxy"
            handlers.append(ctypes.CFUNCTYPE(c_uint32, c_uint32, c_uint32, c_void_p, c_void_p)(function))
            if early:
                self.answers.append(handlers[0](early, 0, None, None))
            return 99

        @self.add(c_int32, c_void_p, c_void_p)
        def SetServiceStatus(handle, status):
            kind, state, accepted, code, specific, _, _ = struct.unpack("<7I", ctypes.string_at(status, 28))
            assert (handle, kind) == (99, 0x10)
            self.states.append((state, accepted, code, specific))
            if state == RUNNING:
                self.running.set()
            return 1


@pytest.mark.parametrize("control", [STOP, SHUTDOWN])
def test_a_service_runs_until_it_is_stopped(control: int) -> None:
    manager = Manager([INTERROGATE, 2, control])  # 2 is PAUSE, which is not offered
    stopped = threading.Event()

    def work(service: WindowsService) -> int:
        service.started(stopped.set)
        stopped.wait()
        return 0

    assert WindowsService("kube-proxy", work, library=manager.library).run() == 0
    assert manager.answers == [0, 120, 0]
    assert manager.states == [
        (START_PENDING, 0, 0, 0),
        (RUNNING, 1 | 4 | 8, 0, 0),
        (RUNNING, 1 | 4 | 8, 0, 0),
        (STOP_PENDING, 0, 0, 0),
        (STOPPED, 0, 0, 0),
    ]


def test_a_service_that_fails_reports_its_exit_status() -> None:
    manager = Manager([])
    manager.running.set()
    assert WindowsService("kube-proxy", lambda _: 3, library=manager.library).run() == 3
    assert manager.states[-1] == (STOPPED, 0, 1066, 3)


def test_an_error_of_the_work_ends_the_service_and_is_raised() -> None:
    manager = Manager([])
    manager.running.set()

    def work(_: WindowsService) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        WindowsService("kube-proxy", work, library=manager.library).run()
    assert manager.states[-1] == (STOPPED, 0, 1066, 1)


def test_stopping_before_the_work_has_started_ends_it_then() -> None:
    manager = Manager([], early=STOP)
    manager.running.set()
    ended = threading.Event()

    def work(service: WindowsService) -> int:
        service.started(ended.set)
        assert ended.is_set()
        return 0

    assert WindowsService("kube-proxy", work, library=manager.library).run() == 0
    assert manager.answers == [0]
    assert [state for state, *_ in manager.states] == [STOP_PENDING, STOPPED]


def test_a_process_that_is_no_service_is_told_apart() -> None:
    manager = Manager([], started=False)
    with pytest.raises(NotAServiceError):
        WindowsService("kube-proxy", lambda _: 0, library=manager.library).run()


# The event log


def test_events_have_their_kind_and_text() -> None:
    stub = StubLibrary()
    events: list[tuple[int, str]] = []
    closed: list[int] = []

    @stub.add(c_void_p, c_void_p, c_void_p)
    def RegisterEventSourceW(server, source):
        assert (server, narrow(source)) == (None, "kube-proxy")
        return 5

    @stub.add(
        c_int32, c_void_p, c_uint16, c_uint16, c_uint32, c_void_p, c_uint16, c_uint32, c_void_p, c_void_p
    )
    def ReportEventW(log, kind, category, event, user, count, size, strings, data):
        assert (log, category, event, user, count, size, data) == (5, 0, 1, None, 1, 0, None)
        events.append((kind, narrow(c_void_p.from_address(strings).value)))
        return 1

    @stub.add(c_int32, c_void_p)
    def DeregisterEventSource(log):
        closed.append(log)
        return 1

    log = EventLog("kube-proxy", library=stub.library)
    for level, text in ((logging.ERROR, "bad €"), (logging.WARNING, "doubt"), (logging.INFO, "x" * 40_000)):
        log.report(level, text)
    log.close()
    assert events == [(1, "bad €"), (2, "doubt"), (4, "x" * 31_000)]
    assert closed == [5]


# The lock


class Sections(StubLibrary):
    """Named sections of memory, shared by the processes of a host."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, tuple[object, int]] = {}
        self.handles: dict[int, str] = {}
        self.views = 0

        @self.add(c_void_p, c_void_p, c_void_p, c_uint32, c_uint32, c_uint32, c_void_p)
        def CreateFileMappingW(file, security, protection, high, low, name):
            assert (file, security, protection, high, low) == (2**64 - 1, None, 4, 0, 4)
            self.error = 183 if narrow(name) in self.sections else 0
            self.sections.setdefault(narrow(name), ((memory := (c_uint8 * 8)()), ctypes.addressof(memory)))
            return self._handle(narrow(name))

        @self.add(c_void_p, c_uint32, c_int32, c_void_p)
        def OpenFileMappingW(access, inherit, name):
            return self._handle(narrow(name)) if narrow(name) in self.sections else self.fail(2)

        @self.add(c_void_p, c_void_p, c_uint32, c_uint32, c_uint32, c_size_t)
        def MapViewOfFile(handle, access, high, low, size):
            self.views += 1
            return self.sections[self.handles[handle]][1]

        @self.add(c_int32, c_void_p)
        def UnmapViewOfFile(view):
            self.views -= 1
            return 1

        @self.add(c_int32, c_void_p)
        def CloseHandle(handle):
            name = self.handles.pop(handle)
            if name not in self.handles.values():
                del self.sections[name]
            return 1

    def _handle(self, name: str) -> int:
        handle = 2**33 + 8 * len(self.handles) + 8 * self.views  # does not fit into 32 bits
        while handle in self.handles:
            handle += 8
        self.handles[handle] = name
        return handle


def test_one_process_holds_the_lock_and_others_learn_which() -> None:
    host = Sections()
    one, other = NamedSection(library=host.library), NamedSection(library=host.library)
    assert one.holder() is other.holder() is None
    assert one.take(4711)
    assert list(host.sections) == [NAME]
    assert not other.take(4712)
    assert one.holder() == other.holder() == 4711
    other.release()  # it has none
    assert other.holder() == 4711
    one.release()
    assert other.holder() is None
    assert other.take(4712)
    assert (len(host.handles), host.views) == (1, 0)


def test_a_lock_that_windows_refuses_is_an_error() -> None:
    host = Sections()

    @host.add(c_void_p, c_void_p, c_void_p, c_uint32, c_uint32, c_uint32, c_void_p)
    def CreateFileMappingW(*_arguments):
        return host.fail(5)

    @host.add(c_void_p, c_uint32, c_int32, c_void_p)
    def OpenFileMappingW(*_arguments):
        return host.fail(5)

    lock = NamedSection(library=host.library)
    with pytest.raises(PermissionError, match="CreateFileMapping"):
        lock.take(1)
    with pytest.raises(PermissionError, match="OpenFileMapping"):
        lock.holder()


# Processes and jobs


class Tasks(StubLibrary):
    """Processes with command lines, and jobs. One library in place of three."""

    def __init__(self, lines: dict[int, str]) -> None:
        super().__init__()
        self.lines = lines
        self.open: list[int] = []
        self.freed: list[int] = []
        self.jobs: dict[int, list[int]] = {}
        self.ended: list[int] = []

        @self.add(c_void_p, c_uint32, c_int32, c_uint32)
        def OpenProcess(access, inherit, process):
            if process not in self.lines:
                return self.fail(87)
            self.open.append(process)
            return process

        @self.add(c_int32, c_void_p)
        def CloseHandle(handle):
            (self.open if handle in self.open else list(self.jobs)).remove(handle)
            return 1

        @self.add(c_int32, c_void_p, c_uint32, c_void_p, c_uint32, ctypes.POINTER(c_uint32))
        def NtQueryInformationProcess(process, kind, memory, size, needed):
            assert kind == 60
            data = self.lines[process].encode("utf-16-le")
            needed[0] = 16 + len(data)
            if size < needed[0]:
                return 0xC0000004 - 2**32
            ctypes.memmove(memory, struct.pack("<HH4xQ", len(data), len(data), memory + 16), 16)
            ctypes.memmove(memory + 16, data, len(data))  # not terminated
            return 0

        @self.add(c_void_p, c_void_p, ctypes.POINTER(c_int32))
        def CommandLineToArgvW(line, count):
            words = [self.keep(wide(word.strip('"'))) for word in narrow(line).split(" ")]
            count[0] = len(words)
            array = self.keep((c_void_p * len(words))(*[ctypes.addressof(word) for word in words]))
            return ctypes.addressof(array)

        @self.add(c_void_p, c_void_p)
        def LocalFree(memory):
            self.freed.append(memory)
            return

        @self.add(c_void_p, c_void_p, c_void_p)
        def CreateJobObjectW(security, name):
            self.jobs[2**40] = []
            return 2**40

        @self.add(c_int32, c_void_p, c_void_p)
        def AssignProcessToJobObject(job, process):
            self.jobs[job].append(process)
            return 1

        @self.add(c_int32, c_void_p, c_uint32)
        def TerminateJobObject(job, code):
            self.ended += self.jobs[job]
            return 1


@pytest.mark.parametrize("extra", [0, 5000], ids=["short", "long"])
def test_the_command_line_of_a_process_is_read(extra: int) -> None:
    line = '"C:\\k\\kube-proxy.exe" --config=C:\\k\\config.yaml ' + "x" * extra
    tasks = Tasks({12: line, 13: ""})
    processes = SystemProcesses(kernel=tasks.library, native=tasks.library, shell=tasks.library)
    assert processes.arguments(12) == ("C:\\k\\kube-proxy.exe", "--config=C:\\k\\config.yaml", "x" * extra)
    assert processes.arguments(13) == ()
    assert not tasks.open
    assert len(tasks.freed) == 1
    with pytest.raises(OSError, match="OpenProcess"):
        processes.arguments(14)


def test_a_job_ends_what_is_in_it() -> None:
    tasks = Tasks({12: "plugin"})
    job = Job(12, library=tasks.library)
    assert tasks.jobs == {2**40: [12]}
    assert not tasks.open
    job.end()
    job.close()
    assert tasks.ended == [12]
    with pytest.raises(OSError, match="OpenProcess"):
        Job(13, library=tasks.library)
