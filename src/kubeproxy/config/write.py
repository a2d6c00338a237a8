"""Writes a configuration as YAML, the way the reference's --write-config-to does.

Keys are sorted, an absent list is null, durations are Go's, strings that would be read as something else
stand in double quotes. A sync period that is not set is written as 0s, which means the default to both
programs; the default here adapts the least time between two syncs. A listener that is off has port 0, since
an empty address means the default. Read back, the file gives the same configuration.
"""

from typing import Any, Final

from msgspec import Struct

from kubeproxy import backends
from kubeproxy.api import yamlscalars
from kubeproxy.config import ConfigError
from kubeproxy.config.durations import Duration
from kubeproxy.config.types import API_VERSION, KIND, SYNC_PERIOD, KubeProxyConfiguration

_OFF: Final = {"healthzBindAddress": "0.0.0.0:0", "metricsBindAddress": "127.0.0.1:0"}
_OMITTED_IF_EMPTY: Final = frozenset(
    {
        "featureGates",
        "windowsRunAsService",
        "vmodule",
        "splitStream",
        "counters",
        "nodeCondition",
        "destroySockets",
        "connectionMetrics",
    }
)


def write(config: KubeProxyConfiguration, path: str) -> None:
    """Writes a configuration to a file.

    Raises:
        ConfigError: the file cannot be written.
    """
    from pathlib import Path

    text = dump(config)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"--write-config-to: {path}: {e.strerror or e}") from None


def dump(config: KubeProxyConfiguration) -> str:
    """Gives the YAML text of a configuration."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes as Kubernetes' YAML library does."""

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        tag = "tag:yaml.org,2002:str"
        odd = not value.isprintable() or not _is_text(value)
        resolved = dumper.resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
        odd = odd or resolved != tag
        return dumper.represent_scalar(tag, value, style='"' if odd else None)

    Dumper.add_representer(str, text)
    content = plain(config)
    for name, off in _OFF.items():
        content[name] = content[name] or off
    out: str = yaml.dump(content, Dumper=Dumper, allow_unicode=True, width=2**30, sort_keys=True)
    return out


def plain(config: KubeProxyConfiguration) -> dict[str, Any]:
    """Returns the configuration as plain mappings, lists, strings and numbers, with the file's names."""
    found: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KIND, **_plain(config)}
    used = backends.mode(config.mode).section
    for section in ("iptables", "ipvs", "nftables"):
        periods = found[section]
        if periods["syncPeriod"] is None:
            periods["syncPeriod"] = str(SYNC_PERIOD if section == used else Duration(0))
        if periods["minSyncPeriod"] is None:
            periods["minSyncPeriod"] = str(Duration(0))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        pairs = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        found = {name: _plain(getattr(value, attribute)) for name, attribute in pairs}
        return {name: v for name, v in found.items() if v or name not in _OMITTED_IF_EMPTY}
    if isinstance(value, Duration | str):
        return str(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _is_text(text: str) -> bool:
    """Whether it is read as text without quotes."""
    try:
        return isinstance(yamlscalars.plain(text), str)
    except ValueError:
        return False
