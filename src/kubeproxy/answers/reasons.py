"""Why something of the kernel cannot be read, in the words of an answer."""

from kubeproxy.backends.base import UnsupportedError
from kubeproxy.machine.base import Machine


def why(machine: Machine, error: Exception) -> str:
    """The error, without its number, and the right that this process lacks.

    Args:
        machine: this host.
        error: what was raised.
    """
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    lacking = machine.lacks(("CAP_NET_ADMIN",))
    return text + (f"; this process has no {lacking[0]}" if lacking else "")


def kernel_unread(machine: Machine, error: Exception) -> str:
    """Why what a mode has in the kernel cannot be read."""
    if isinstance(error, UnsupportedError):
        return str(error)
    return f"the kernel cannot be read: {why(machine, error)}"
