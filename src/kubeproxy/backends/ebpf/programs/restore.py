"""recvmsg and getpeername: what came from an endpoint is reported as coming from the front."""

from typing import Final

from kubeproxy.backends.ebpf.programs.context import CTX, PROTOCOL, TCP, Emitter, Form, Options
from kubeproxy.linux.bpf.assembler import FP, R0, R1, R2, R3, R4, Assembled, Helper

_REVERSE: Final = -32  # key of reverse: cookie and slot


def program(name: str, form: Form, options: Options, *, connected: bool = False) -> Assembled:
    """The program.

    Args:
        name: its name.
        form: the form of addresses.
        options: the options.
        connected: for getpeername, which sockets of TCP have, too.
    """
    e = Emitter(name, form, options)
    a, slot = e.a, form.layout.slot
    a.c("key.slot = (address, ctx->user_port);")
    e.slot_to_stack(_REVERSE + 8)
    if connected:
        a.c("if (ctx->protocol == IPPROTO_TCP) goto stream;")
        a.load(R1, CTX, PROTOCOL, 4).jump("==", R1, TCP, "stream" if options.peers else "pass")
    a.c("key.cookie = bpf_get_socket_cookie(ctx); front = bpf_map_lookup_elem(&reverse, &key);")
    a.set(R1, CTX).call(Helper.GET_SOCKET_COOKIE).store(FP, _REVERSE, R0, 8)
    e.lookup("reverse", _REVERSE)
    a.jump("==", R0, 0, "pass").label("restore")
    e.slot_to_context(R0, 0)
    a.label("pass").c("return 1;").exit(1)
    if connected and options.peers:
        a.label("stream")
        a.c("peer = bpf_sk_storage_get(&peers, ctx->sk, NULL, 0); if (!peer) goto pass;")
        e.socket(R2)
        a.set(R3, 0).set(R4, 0)
        e.map(R1, "peers")
        a.call(Helper.SK_STORAGE_GET).jump("==", R0, 0, "pass")
        a.c("if (peer->slot != key.slot) goto pass;")
        for offset in range(0, slot, 8):
            a.load(R1, R0, slot + offset, 8).load(R2, FP, _REVERSE + 8 + offset, 8).jump("!=", R1, R2, "pass")
        a.goto("restore")
    return a.assemble()
