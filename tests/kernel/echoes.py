"""A backend that says whatever is said to it, as a process that can be killed: `python -m tests.kernel.echoes ADDRESS PORT`."""

import select
import socket
import sys


def main(address: str, port: int) -> None:
    listener = socket.create_server((address, port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, tuple[socket.socket, bytearray]] = {}
    print("ready", flush=True)
    while True:
        for descriptor, events in poll.poll():
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                connection.setblocking(False)
                poll.register(connection.fileno(), select.EPOLLIN)
                connections[connection.fileno()] = connection, bytearray()
                continue
            connection, held = connections[descriptor]
            try:
                if events & select.EPOLLIN:
                    said = connection.recv(1 << 16)
                    held += said
                    if not said and not held:
                        raise ConnectionError  # noqa: TRY301 the other side is done
                if held:
                    del held[: connection.send(held)]
                poll.modify(descriptor, select.EPOLLOUT if held else select.EPOLLIN)
            except BlockingIOError:
                continue
            except ConnectionError:
                del connections[descriptor]
                connection.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
