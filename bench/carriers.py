"""Helper processes of bench.userspace: `python -m bench.carriers ROLE PORT...`, inside a namespace.

sink PORT             accepts connections and reads everything; answers `!` if the first byte is `?`
source PORT SECONDS   sends for this time over one connection; prints the bytes, and the seconds until all
were sent caller PORT SECONDS   connects, sends a request, closes, repeatedly, 32 at a time; prints how often,
and how many failed copy PORT TARGET      a proxy of asyncio streams
"""

import asyncio
import contextlib
import select
import socket
import struct
import sys
import time

HOST = "127.0.0.1"
CALLERS = 32
_CHUNK = 1 << 18
_RESET = struct.pack("ii", 1, 0)


def sink(port: int) -> None:
    listener = socket.create_server((HOST, port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    buffer = bytearray(_CHUNK)
    print("ready", flush=True)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    connection, _ = listener.accept()
                    poll.register(connection.fileno(), select.EPOLLIN)
                    connections[connection.fileno()] = connection
                continue
            connection = connections[descriptor]
            try:
                size = connection.recv_into(buffer)
                if size == 1 and buffer[0] == ord("?"):
                    connection.send(b"!")
            except ConnectionError:
                size = 0
            if not size:
                del connections[descriptor]
                connection.close()


def source(port: int, seconds: float) -> None:
    data = memoryview(bytes(_CHUNK))
    sent = 0
    with socket.create_connection((HOST, port)) as sock:
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            sent += sock.send(data)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
        print(sent, time.monotonic() - started)


def caller(port: int, seconds: float) -> None:
    poll = select.epoll()
    calls: dict[int, socket.socket] = {}
    done = failed = 0

    def call() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        # Avoids TIME_WAIT, because otherwise all ports would soon be in use.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.connect_ex((HOST, port))
        poll.register(sock.fileno(), select.EPOLLOUT)
        calls[sock.fileno()] = sock

    started = time.monotonic()
    for _ in range(CALLERS):
        call()
    while time.monotonic() - started < seconds:
        for descriptor, events in poll.poll(1):
            sock = calls[descriptor]
            try:
                if events & select.EPOLLOUT:
                    sock.send(b"?")
                    poll.modify(descriptor, select.EPOLLIN)
                    continue
                if sock.recv(1) != b"!":
                    failed += 1
            except OSError:
                failed += 1
            done += 1
            del calls[descriptor]
            sock.close()
            call()
    print(done / (time.monotonic() - started), failed)


async def _copy(port: int, target: int) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other, out = await asyncio.open_connection(HOST, target)
        await asyncio.gather(carry(reader, out), carry(other, writer))
        writer.close()
        out.close()

    server = await asyncio.start_server(serve, HOST, port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    role, *numbers = sys.argv[1:]
    match role:
        case "sink":
            sink(int(numbers[0]))
        case "source":
            source(int(numbers[0]), float(numbers[1]))
        case "caller":
            caller(int(numbers[0]), float(numbers[1]))
        case "copy":
            asyncio.run(_copy(int(numbers[0]), int(numbers[1])))
