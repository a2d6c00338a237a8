"""Services as users name them: NAMESPACE/NAME, or NAME.NAMESPACE as in DNS."""

from difflib import get_close_matches
from typing import Final

from kubeproxy.model.plan import Key
from kubeproxy.model.state import State

FORM: Final = "a Service is written as NAMESPACE/NAME or NAME.NAMESPACE, e.g. shop/api or api.shop"
_SUFFIXES: Final = (".cluster.local", ".svc")
_MOST: Final = 3


def service(text: str) -> Key | None:
    """Namespace and name of a Service; None if it is not written as one."""
    if "/" in text:
        namespace, _, name = text.partition("/")
    else:
        for suffix in _SUFFIXES:
            text = text.removesuffix(suffix)
        name, _, namespace = text.partition(".")
    if not namespace or not name or {"/", ".", ":"} & {*namespace, *name}:
        return None
    return namespace, name


def known(state: State, text: str) -> Key:
    """Namespace and name of a Service that exists.

    Raises:
        ValueError: it is not written as one, or does not exist; the message has what was probably meant.
    """
    key = service(text)
    if key is None:
        raise ValueError(f"{text!r}: {FORM}{_meant(state, text)}")
    if key not in state.services:
        raise ValueError(missing(state, key))
    return key


def missing(state: State, key: Key) -> str:
    """Why a Service cannot be asked about."""
    name = "/".join(key)
    if key in state.foreign:
        return f"Service {name} is not served by kube-proxy: it is headless, of type ExternalName, or of another proxy"
    close = get_close_matches(name.lower(), ["/".join(each) for each in state.services], 1)
    return f"there is no Service {name}" + (f"; did you mean {close[0]}?" if close else _meant(state, key[1]))


def _meant(state: State, name: str) -> str:
    """The Services of this name in any namespace."""
    found = sorted("/".join(key) for key in state.services if key[1] == name.lower())
    return f"; did you mean {' or '.join(found[:_MOST])}?" if found else ""
