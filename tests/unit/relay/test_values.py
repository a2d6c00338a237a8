"""Messages between the daemon and the relay process."""

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.relay.values import (
    Choice,
    Close,
    Decoder,
    Listener,
    LogLine,
    Mark,
    Message,
    Open,
    Update,
    encode,
)

_targets = st.lists(
    st.tuples(st.sampled_from(["10.0.0.1", "fd00::1"]), st.integers(1, 65535)), max_size=3
).map(tuple)
_listeners = st.builds(
    Listener,
    name=st.text(max_size=20),
    group=st.text(max_size=20),
    udp=st.booleans(),
    choices=st.lists(st.builds(Choice, targets=_targets, clients=st.just(("10.0.0.0/8",))), max_size=2).map(
        tuple
    ),
    affinity=st.integers(0, 86400),
    translated=st.booleans(),
    kept=_targets,
    header=st.booleans(),
)
_numbers = st.integers(1, 1 << 40)
_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Open, _numbers, _listeners),
    st.builds(Update, _numbers, _listeners),
    st.builds(Close, _numbers),
    st.builds(Mark, st.integers(0, 1 << 40)),
    st.builds(LogLine, st.integers(0, 50), st.text(max_size=50)),
)


@given(st.lists(_messages, max_size=5), st.data())
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(
    messages: list[Message], data: st.DataObject
) -> None:
    stream = b"".join(map(encode, messages))
    decoder = Decoder()
    found: list[Message] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:size])
        stream = stream[size:]
    assert found == messages
