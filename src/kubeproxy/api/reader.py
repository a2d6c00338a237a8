"""Reads a file of settings, which is YAML or JSON: the configuration and kubeconfig files."""

from typing import Any

from kubeproxy.api import jsontext, yamltext
from kubeproxy.api.limits import as_utf8
from kubeproxy.api.yamltext import Repeated, ignore


def read(data: bytes, repeated: Repeated = ignore) -> Any:
    """Reads JSON or the first document of YAML; None if there is none.

    What begins with a brace is read as JSON if it is JSON, and nothing may follow it.

    Args:
        data: the text, in UTF-8 or UTF-16.
        repeated: is given each key that is twice in a mapping; the last one counts.

    Raises:
        TextError: it is neither, or larger, deeper or longer than `limits` allow.
    """
    data = as_utf8(data)
    if data.lstrip()[:1] == b"{":
        found: list[tuple[str, int]] = []
        try:
            value = jsontext.tree(data, lambda *key: found.append(key))
        except jsontext.NotJSONError:
            pass
        else:
            for key in found:
                repeated(*key)
            return value
    return yamltext.first(data, repeated)
