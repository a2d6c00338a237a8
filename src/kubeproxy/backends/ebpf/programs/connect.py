"""connect and sendmsg: a front becomes one of its endpoints.

A front's word says what to do: leave it to nftables mode, refuse, or choose one of the slots of a block.
Nothing is remembered but what the way back needs (`restore`) and, with session affinity, the client.
"""

import errno
from typing import Final

from kubeproxy.backends.ebpf.layout import OWN, PASS, STICKY
from kubeproxy.backends.ebpf.programs.context import (
    CTX,
    PROTOCOL,
    TCP,
    USER_PORT,
    Emitter,
    Form,
    Options,
)
from kubeproxy.linux.bpf.assembler import (
    FP,
    R0,
    R1,
    R2,
    R3,
    R4,
    R7,
    R8,
    R9,
    Assembled,
    Helper,
)

# The stack. What is needed at the same time has different places.
_SCRATCH: Final = -8
_INDEX: Final = -16  # index of the word, later that of the slot
_KEY: Final = -40  # of fronts, 20 bytes
_CLIENT: Final = -56  # of sticky, 16 bytes
_STUCK: Final = -88  # value of sticky, 32 bytes
_MEMBER: Final = -112  # of members, 24 bytes
_FRONT: Final = -136  # the front that was asked for, as a slot of 24 bytes
_REVERSE: Final = -168  # key of reverse, 32 bytes
_PEER: Final = -216  # value of peers, 48 bytes


def program(name: str, form: Form, options: Options, *, datagrams: bool = False) -> Assembled:
    """The program.

    Args:
        name: its name.
        form: the form of addresses.
        options: the options.
        datagrams: for sendmsg; sockets are those of UDP then.
    """
    e = _Connect(name, form, options)
    e.find()
    e.decide()
    e.choose()
    e.remember(datagrams=datagrams)
    e.end()
    e.node_port()
    e.affinity()
    return e.a.assemble()


class _Connect(Emitter):
    def find(self) -> None:
        """R7 = the index of the front's word."""
        a = self.a
        a.c(f"key.address = {self.form.c_address};")
        self.address_to_stack(_KEY)
        a.c("if (!key.address) goto pass;")
        a.load(R1, FP, _KEY, 4)
        for number in range(1, len(self.form.words)):
            a.load(R2, FP, _KEY + 4 * number, 4).compute(R1, "|=", R2)
        a.jump("==", R1, 0, "pass")
        a.c("key.port = ctx->user_port; key.protocol = ctx->protocol;")
        end = _KEY + self.address_bytes
        a.load(R1, CTX, USER_PORT, 4).store(FP, end, R1, 2)
        a.load(R1, CTX, PROTOCOL, 4).store(FP, end + 2, R1, 1).store(FP, end + 3, 0, 1)
        a.c("entry = bpf_map_lookup_elem(&fronts, &key);")
        self.lookup("fronts", _KEY)
        a.c("if (!entry) goto node_port;").jump("==", R0, 0, "node_port")
        a.label("found")
        a.c("value = *(u64 *)entry; if (value >> 32 != tag(key)) goto pass;")
        a.load(R7, R0, 0, 8).set(R1, R7).compute(R1, ">>=", 32)
        for at in range(_KEY, _KEY + self.form.layout.key, 4):
            a.load(R2, FP, at, 4).compute(R1, "^=", R2)
        a.jump("!=", R1, 0, "pass")

    def decide(self) -> None:
        """R8 = the word; R9 = the number of endpoints."""
        a = self.a
        a.c("index = value; word = bpf_map_lookup_elem(&words, &index);")
        a.store(FP, _INDEX, R7, 4)
        self.lookup("words", _INDEX)
        a.jump("==", R0, 0, "pass").load(R8, R0, 0, 8)
        a.set(R9, R8).compute(R9, ">>=", 48)
        a.c("if (word->flags & PASS) goto pass;").jump("&", R9, PASS, "pass")
        a.c("if (!(word->flags & OWN)) goto admitted;")
        a.set(R1, R9).compute(R1, "&=", OWN).jump("==", R1, 0, "admitted")
        self.only_own("pass")
        a.label("admitted")
        a.c("if (word->flags & STICKY) goto affinity;").jump("&", R9, STICKY, "affinity")
        a.label("fresh")
        a.c("if (!word->count) goto refuse;")
        a.set(R9, R8).compute(R9, ">>=", 32).compute(R9, "&=", 0xFFFF).jump("==", R9, 0, "refuse")

    def choose(self) -> None:
        """R7 = the slot."""
        a = self.a
        a.c("index = word->base + bpf_get_prandom_u32() % word->count;")
        a.call(Helper.GET_PRANDOM_U32).compute(R0, "%=", R9, bits=32)
        a.compute(R0, "+=", R8, bits=32).store(FP, _INDEX + 4, R0, 4)
        a.c("slot = bpf_map_lookup_elem(&slots, &index);")
        self.lookup("slots", _INDEX + 4)
        a.jump("==", R0, 0, "pass").set(R7, R0)
        a.c("count = bpf_map_lookup_elem(&counts, &index); if (count) __sync_fetch_and_add(count, 1);")
        self.lookup("counts", _INDEX + 4)
        a.jump("==", R0, 0, "counted").set(R1, 1).atomic_add(R0, 0, R1)
        a.label("counted")
        a.c("if (word->flags & STICKY) goto stick;")
        a.set(R1, R8).compute(R1, ">>=", 48).jump("&", R1, STICKY, "stick")
        a.label("chosen")

    def remember(self, *, datagrams: bool) -> None:
        """What the way back needs: for UDP in a map, for TCP in the storage of the socket."""
        a, slot = self.a, self.form.layout.slot
        if not datagrams:
            a.c("if (ctx->protocol == IPPROTO_TCP) goto stream;")
            a.load(R1, CTX, PROTOCOL, 4).jump("==", R1, TCP, "stream" if self.options.peers else "translate")
        a.c("reverse[(cookie, *slot)] = front;")
        self.slot_to_stack(_FRONT)
        a.set(R1, CTX).call(Helper.GET_SOCKET_COOKIE).store(FP, _REVERSE, R0, 8)
        self.copy(_REVERSE + 8, R7, 0, slot)
        a.set(R2, FP).compute(R2, "+=", _REVERSE).set(R3, FP).compute(R3, "+=", _FRONT).set(R4, 0)
        self.map(R1, "reverse")
        a.call(Helper.MAP_UPDATE_ELEM)
        if not datagrams and self.options.peers:
            a.goto("translate").label("stream")
            a.c("peer = {front, *slot}; bpf_sk_storage_get(&peers, ctx->sk, &peer, CREATE);")
            self.slot_to_stack(_PEER)
            self.copy(_PEER + slot, R7, 0, slot)
            self.socket(R2)
            a.set(R3, FP).compute(R3, "+=", _PEER).set(R4, 1)
            self.map(R1, "peers")
            a.call(Helper.SK_STORAGE_GET).jump("==", R0, 0, "translate")
            a.c("*stored = peer;")
            for offset in range(0, 2 * slot, 8):
                a.load(R1, FP, _PEER + offset, 8).store(R0, offset, R1, 8)

    def end(self) -> None:
        a = self.a
        a.label("translate")
        self.slot_to_context(R7, 0)
        a.label("pass").c("return 1;").exit(1)
        a.label("refuse")
        if self.options.refuses:
            a.c("bpf_set_retval(-ECONNREFUSED); return 0;")
            a.set(R1, -errno.ECONNREFUSED).call(Helper.SET_RETVAL).exit(0)
        else:
            a.goto("pass")

    def node_port(self) -> None:
        """What is no front may be a node port, at an address of the node."""
        a = self.a
        a.label("node_port")
        a.c("host = key.address; key.address = 0; entry = bpf_map_lookup_elem(&fronts, &key);")
        for number in range(len(self.form.words)):
            a.load(R1, FP, _KEY + 4 * number, 4).store(FP, _FRONT + 4 * number, R1, 4)
            a.store(FP, _KEY + 4 * number, 0, 4)
        self.lookup("fronts", _KEY)
        a.jump("==", R0, 0, "pass").set(R7, R0)
        a.c("flags = bpf_map_lookup_elem(&hosts, &host); if (!flags) goto pass;")
        self.lookup("hosts", _FRONT)
        a.jump("==", R0, 0, "pass").load(R1, R0, 0, 4).set(R0, R7)
        a.c("if (!(*flags & OWN)) goto found;")
        a.compute(R1, "&=", OWN).jump("==", R1, 0, "found")
        self.only_own("pass")
        a.set(R0, R7).goto("found")

    def affinity(self) -> None:
        """A client, which is a network namespace, stays with its endpoint while that is one of the word's."""
        a, layout = self.a, self.form.layout
        a.label("affinity")
        a.c("client.cookie = bpf_get_netns_cookie(ctx); client.number = index >> 1;")
        a.set(R1, CTX).call(Helper.GET_NETNS_COOKIE).store(FP, _CLIENT, R0, 8)
        a.load(R1, FP, _INDEX, 4).compute(R1, ">>=", 1).store(FP, _CLIENT + 8, R1, 4)
        a.store(FP, _CLIENT + 12, 0, 4)
        a.c("stuck = bpf_map_lookup_elem(&sticky, &client); if (!stuck) goto fresh;")
        self.lookup("sticky", _CLIENT)
        a.jump("==", R0, 0, "fresh").set(R7, R0)
        a.c("timeout = bpf_map_lookup_elem(&timeouts, &client.number); if (!timeout) goto fresh;")
        self.lookup("timeouts", _CLIENT + 8)
        a.jump("==", R0, 0, "fresh").load(R9, R0, 0, 8)
        a.c("now = bpf_ktime_get_ns(); if (now - stuck->time > *timeout) goto fresh;")
        a.call(Helper.KTIME_GET_NS).load(R1, R7, layout.slot, 8).set(R2, R0).compute(R2, "-=", R1)
        a.jump(">", R2, R9, "fresh").set(R9, R0)
        a.c("count = bpf_map_lookup_elem(&members, &(index, *stuck)); if (!count) goto fresh;")
        a.load(R1, FP, _INDEX, 4).store(FP, _MEMBER, R1, 4)
        for at in range(0, layout.address, 4):
            a.load(R1, R7, at, 4).store(FP, _MEMBER + 4 + at, R1, 4)
        a.load(R1, R7, layout.address, 2).store(FP, _MEMBER + 4 + layout.address, R1, 2)
        a.store(FP, _MEMBER + 6 + layout.address, 0, 2)
        self.lookup("members", _MEMBER)
        a.jump("==", R0, 0, "fresh")
        a.c("__sync_fetch_and_add(count, 1);").set(R1, 1).atomic_add(R0, 0, R1)
        a.c("stuck->time = now;").store(R7, layout.slot, R9, 8)
        a.goto("chosen")
        a.label("stick")
        a.c("bpf_map_update_elem(&sticky, &client, &(*slot, now));")
        self.copy(_STUCK, R7, 0, layout.slot)
        a.call(Helper.KTIME_GET_NS).store(FP, _STUCK + layout.slot, R0, 8)
        a.set(R2, FP).compute(R2, "+=", _CLIENT).set(R3, FP).compute(R3, "+=", _STUCK).set(R4, 0)
        self.map(R1, "sticky")
        a.call(Helper.MAP_UPDATE_ELEM).goto("chosen")
