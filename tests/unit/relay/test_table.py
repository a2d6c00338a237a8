"""What is sent to a relay process brings it to the table, however it reads and whenever it is started again."""

import socket

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.relay.steering import SteeredPort, SteeredPorts
from kubeproxy.relay.table import ListenerTable
from kubeproxy.relay.values import Close, Listener, Mark, Message, Open, OpenGate, Update


class Served:
    """A process that takes some messages and then no more for a while."""

    def __init__(self) -> None:
        self.listeners: dict[int, Listener] = {}
        self.gates: set[bool] = set()
        self.came: list[Message] = []
        self.room = 0

    def take(self, message: Message, sock: socket.socket | None) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.came.append(message)
        assert (sock is not None) == (
            isinstance(message, OpenGate) or (isinstance(message, Open) and message.behind is None)
        )
        assert sock is None or sock.fileno() >= 0
        if isinstance(message, OpenGate):
            assert message.udp not in self.gates
            self.gates.add(message.udp)
        elif isinstance(message, Open):
            assert message.number not in self.listeners
            assert message.behind is None or False in self.gates
            self.listeners[message.number] = message.listener
        elif isinstance(message, Update):
            assert message.number in self.listeners
            self.listeners[message.number] = message.listener
        elif isinstance(message, Close):
            del self.listeners[message.number]
        return True


class SteeredNames(SteeredPorts):
    """In place of what steers: it remembers the ports."""

    def __init__(self) -> None:
        self.steered: set[SteeredPort] = set()

    def steer(self, port: SteeredPort, at: tuple[str, int]) -> None:
        assert port.getsockname() == at
        self.steered.add(port)

    def forget(self, port: SteeredPort, at: tuple[str, int]) -> None:
        assert port.getsockname() == at
        self.steered.discard(port)


def listener(number: int) -> Listener:
    return Listener(f"Service {number}", "group")


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "steer", "change", "remove", "read", "restart"]), st.integers(0, 9)),
    max_size=60,
)


@given(STEPS)
def test_the_process_ends_up_with_the_table(steps: list[tuple[str, int]]) -> None:
    """Clients of a port are steered exactly while the table has it and a process knows it."""
    table, served = ListenerTable(), Served()
    numbers: list[int] = []
    gate = socket.socket()
    steering = SteeredNames()
    for what, number in steps:
        if what == "add":
            numbers.append(table.add(socket.socket(), listener(number)))
        elif what == "steer":
            numbers.append(
                table.add(SteeredPort(steering, gate, "127.0.0.1", len(numbers)), listener(number))
            )
        elif what == "change" and numbers:
            table.change(numbers[number % len(numbers)], listener(number))
        elif what == "remove" and numbers:
            table.remove(numbers.pop(number % len(numbers)))
        elif what == "restart":
            served = Served()
            table.restart()
        else:
            served.room = number
            table.send(served.take)
    mark = table.mark()
    served.room = 1000
    assert table.send(served.take)
    assert served.listeners == {number: wanted for number, (_, wanted) in table.listeners.items()}
    assert served.came[-1] == Mark(mark)
    assert not table.unsent
    assert steering.steered == {each for each, _ in table.listeners.values() if isinstance(each, SteeredPort)}
    table.clear()
    assert not steering.steered
    gate.close()


def test_of_many_changes_the_process_is_sent_the_last() -> None:
    table, served = ListenerTable(), Served()
    number = table.add(socket.socket(), listener(0))
    for i in range(1000):
        table.change(number, listener(i))
        table.send(served.take)
    assert table.unsent == 1
    served.room = 1000
    assert table.send(served.take)
    assert served.came == [Open(number, listener(999))]
    table.clear()


def test_what_came_and_went_meanwhile_is_not_sent() -> None:
    table, served = ListenerTable(), Served()
    table.remove(table.add(socket.socket(), listener(0)))
    served.room = 1000
    assert table.send(served.take)
    assert not served.came


def test_a_large_table_is_sent_in_parts() -> None:
    """Others that want to change it meanwhile need not wait for the whole."""
    table, served = ListenerTable(), Served()
    sock = socket.socket()
    for i in range(1000):
        table.add(sock, listener(i))
    served.room, parts = 1_000_000, 1
    while not table.send(served.take):
        parts += 1
    assert len(served.listeners) == 1000
    assert parts > 10
    sock.close()
