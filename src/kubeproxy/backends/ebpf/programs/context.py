"""What the programs have in common: the context, where it has the address, and slots on the stack.

Source: struct bpf_sock_addr, linux/bpf.h.
"""

from typing import Final

from msgspec import Struct

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.backends.ebpf import names
from kubeproxy.backends.ebpf.layout import LAYOUTS, FamilyLayout
from kubeproxy.linux.bpf.assembler import FP, R0, R1, R2, R6, Assembler, Helper, Register

USER_PORT, PROTOCOL, SOCKET = 24, 36, 64
"""Offsets of fields of struct bpf_sock_addr."""

CTX: Final = R6
"""Where the programs keep the context."""

TCP: Final = 6


class Form(Struct, frozen=True, gc=False):
    """How a hook has addresses.

    Attributes:
        family: the family of the addresses.
        words: the offsets in the context of their words of 4 bytes.
        prefix: offset and value of further words that the address must have.
    """

    family: Family
    words: tuple[int, ...]
    prefix: tuple[tuple[int, int], ...] = ()

    @property
    def layout(self) -> FamilyLayout:
        """The maps of the family."""
        return LAYOUTS[self.family]

    @property
    def c_address(self) -> str:
        """The address, in C."""
        if self.family == IPV6:
            return "ctx->user_ip6"
        return "ctx->user_ip6[3]" if self.prefix else "ctx->user_ip4"


NATIVE4: Final = Form(IPV4, (4,))
NATIVE6: Final = Form(IPV6, (8, 12, 16, 20))
MAPPED: Final = Form(IPV4, (20,), ((8, 0), (12, 0), (16, 0xFFFF0000)))
"""IPv4 in IPv6; the value is ::ffff:0:0 in network byte order, as a little-endian machine reads it."""


class Options(Struct, frozen=True, gc=False):
    """What programs depend on.

    Attributes:
        cookie: the cookie of the node's network namespace; None: the kernel's initial one is asked for.
        refuses: the kernel lets a program choose the error (Linux 5.18); otherwise a front without endpoints
            is left to nftables mode, which rejects its packets.
        peers: getpeername of a TCP socket returns the front.
    """

    cookie: int | None
    refuses: bool = True
    peers: bool = True


class Emitter:
    """Emits what several programs need.

    Attributes:
        a: the assembler.
        form: the form of addresses.
        options: the options.
    """

    def __init__(self, name: str, form: Form, options: Options) -> None:
        """Begins a program: keeps the context, and passes what is not in the form."""
        self.a = Assembler(f"{names.INFIX}{name}")
        self.form = form
        self.options = options
        self.a.c("int program(struct bpf_sock_addr *ctx)").set(CTX, R1)
        for offset, value in form.prefix:
            self.a.c(
                f"if (ctx->user_ip6[{offset // 4 - 2}] != htonl({'0xffff' if value else '0'})) return 1;"
            )
            self.a.load(R1, CTX, offset, 4)
            if value:
                self.a.wide(R2, value).jump("!=", R1, R2, "pass")
            else:
                self.a.jump("!=", R1, 0, "pass")

    @property
    def address_bytes(self) -> int:
        """The bytes of an address."""
        return self.form.layout.address

    def map(self, target: Register, name: str) -> None:
        """Target = a map of the family."""
        self.a.map(target, f"{name}{names.digit(self.form.family)}")

    def address_to_stack(self, at: int) -> None:
        """Copies the address of the context to the stack."""
        for number, offset in enumerate(self.form.words):
            self.a.load(R1, CTX, offset, 4).store(FP, at + 4 * number, R1, 4)

    def slot_to_stack(self, at: int) -> None:
        """Copies address and port of the context to the stack, as a slot."""
        self.address_to_stack(at)
        end = at + self.address_bytes
        self.a.load(R1, CTX, USER_PORT, 4).store(FP, end, R1, 2)
        if self.form.family == IPV4:
            self.a.store(FP, end + 2, 0, 2)
        else:
            self.a.store(FP, end + 2, 0, 2).store(FP, end + 4, 0, 4)

    def slot_to_context(self, base: Register, at: int) -> None:
        """Replaces address and port of the context by those of a slot in memory."""
        self.a.c(f"{self.form.c_address} = slot->address; ctx->user_port = slot->port;")
        for number, offset in enumerate(self.form.words):
            self.a.load(R1, base, at + 4 * number, 4).store(CTX, offset, R1, 4)
        self.a.load(R1, base, at + self.address_bytes, 2).store(CTX, USER_PORT, R1, 4)

    def copy(self, target: int, base: Register, source: int, size: int) -> None:
        """Copies words of 8 bytes to the stack."""
        for offset in range(0, size, 8):
            self.a.load(R1, base, source + offset, 8).store(FP, target + offset, R1, 8)

    def lookup(self, name: str, key: int) -> None:
        """R0 = the value of the key on the stack, in a map of the family."""
        self.a.set(R2, FP).compute(R2, "+=", key)
        self.map(R1, name)
        self.a.call(Helper.MAP_LOOKUP_ELEM)

    def only_own(self, label: str) -> None:
        """Jumps unless the socket is in the node's own namespace."""
        a = self.a
        if self.options.cookie is None:
            a.c("if (bpf_get_netns_cookie(ctx) != bpf_get_netns_cookie(NULL)) goto pass;")
            a.set(R1, 0).call(Helper.GET_NETNS_COOKIE).store(FP, -8, R0, 8)
            a.set(R1, CTX).call(Helper.GET_NETNS_COOKIE).load(R1, FP, -8, 8)
        else:
            a.c("if (bpf_get_netns_cookie(ctx) != NODE) goto pass;")
            a.set(R1, CTX).call(Helper.GET_NETNS_COOKIE).wide(R1, self.options.cookie)
        a.jump("!=", R0, R1, label)

    def socket(self, target: Register) -> None:
        """Target = the socket."""
        self.a.load(target, CTX, SOCKET, 8)
