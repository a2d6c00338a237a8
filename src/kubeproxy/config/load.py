"""Flags and the configuration file become the options the program runs with.

Without --config every flag sets its field. With it the file sets everything, and only the flags marked
`always` are used: what to do, logging, --hostname-override, --master, and the flags of features that the
reference does not have.
"""

from collections.abc import Mapping
from logging import Logger
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from kubeproxy import backends
from kubeproxy.api.limits import read_file
from kubeproxy.backends.mode import Mode
from kubeproxy.config import ConfigError
from kubeproxy.config.decode import UNKNOWN_FIELD, decode
from kubeproxy.config.defaults import (
    DEFAULTS,
    HEALTHZ_PORT,
    METRICS_PORT,
    with_defaults,
    with_platform_defaults,
    with_port,
    without_zeros,
)
from kubeproxy.config.durations import Quantity
from kubeproxy.config.flags import known
from kubeproxy.config.gates import remarks
from kubeproxy.config.kinds import show
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.log import LogSettings

DEFAULT_JOURNAL_BYTES: Final = 64 * 2**20
LEAST_JOURNAL_BYTES: Final = 2**20


class RunOptions(Struct, gc=False, frozen=True):
    """What one run of the program is to do.

    Attributes:
        config: the configuration in effect.
        config_file: the file it was read from; empty if from flags.
        config_data: what that file held.
        write_config_to: where to write the configuration instead of running.
        cleanup: remove what any mode left in the kernel instead of running.
        cleanup_force: do so although another instance runs.
        cleanup_variant: remove only what is in the tables of this variant of iptables; empty for everything.
        init_only: do only what needs full privileges.
        master: the API server's address, before the kubeconfig's.
        manifests: files and folders to read instead of asking an API server.
        userspace_listen: userspace mode listens on the Services' own addresses.
        journal: the folder that changes are recorded in; empty for none.
        journal_bytes: how many bytes it may have.
        status_page: when the status page is served: at loopback addresses, always or never.
        version: the Kubernetes version to report, if --version named one.
        flags: every flag's name and value as text, as /flagz shows them.
        warnings: what the operator should know; logged once logging works.
        unknown_fields: the unknown fields of the file, each as a message; logged as errors.
        log_file: the file to log to; empty for the standard streams.
        given: the flags that were given, from which these options were made.
    """

    config: KubeProxyConfiguration
    config_file: str = ""
    config_data: bytes = b""
    write_config_to: str = ""
    cleanup: bool = False
    cleanup_force: bool = False
    cleanup_variant: Literal["", "legacy", "nf_tables"] = ""
    init_only: bool = False
    master: str = ""
    manifests: tuple[str, ...] = ()
    userspace_listen: bool = False
    journal: str = ""
    journal_bytes: int = DEFAULT_JOURNAL_BYTES
    status_page: Literal["loopback", "always", "never"] = "loopback"
    version: str = ""
    flags: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    unknown_fields: tuple[str, ...] = ()
    log_file: str = ""
    given: Mapping[str, Any] = {}

    @property
    def mode(self) -> Mode:
        """The mode that is named, or the one that does the same without rules if that is asked for."""
        named = backends.mode(self.config.mode)
        return backends.mode(named.without_rules) if self.userspace_listen and named.without_rules else named

    @property
    def log_settings(self) -> LogSettings:
        """How to log."""
        return replace(self.config.logging.settings, file=self.log_file)

    def report(self, log: Logger, but: "RunOptions | None" = None) -> None:
        """Logs what the operator should know.

        Args:
            log: where to.
            but: options of which everything was logged.
        """
        for warning in self.warnings:
            if but is None or warning not in but.warnings:
                log.warning("%s", warning)
        for message in self.unknown_fields:
            if but is None or message not in but.unknown_fields:
                log.error("%s", message)


def load(values: Mapping[str, Any], platform: str) -> RunOptions:
    """Makes the options of a command line, reading the configuration file if it names one.

    The result is complete but not yet validated; see `validate`.

    Args:
        values: the flags that were given, as `commandline.parse` returns them.
        platform: `sys.platform`.

    Raises:
        ConfigError: the file cannot be read or decoded, the host name is blank, a path of --manifests is
            empty, --cleanup-variant or --status-page is wrong, or --journal-size is too small.
    """
    flags = known(platform)
    warnings = [
        f"--{name} is deprecated: {flags[name].deprecated}" for name in values if flags[name].deprecated
    ]
    unknown: list[str] = []
    path = values.get("config", "")
    data = b""
    if path:
        data = read(path)
        config, doubts = decode(data, path)
        config = with_defaults(config)
        unknown = [f"{path}: ignored {doubt}" for doubt in doubts if doubt.startswith(UNKNOWN_FIELD)]
        warnings += [f"{path}: {doubt}" for doubt in doubts if not doubt.startswith(UNKNOWN_FIELD)]
        config = _with_logging(config, values, platform)
        ignored = [f"--{name}" for name in values if not flags[name].always]
        if ignored:
            warnings.append(f"ignored because --config is given: {', '.join(ignored)}")
    else:
        config = _from_flags(values, platform)
        warnings += _useless_ports(config, values)
    config = with_platform_defaults(config, platform)
    if "" in values.get("manifests", ()):  # an unset variable; as a path it would be the current folder
        raise ConfigError("--manifests: a path is empty")
    if hostname := values.get("hostname-override", ""):
        if not hostname.strip():
            raise ConfigError("--hostname-override: empty hostname-override is invalid")
        config = replace(config, hostname_override=hostname.strip().lower())
    if values.get("userspace-listen") and not backends.mode(config.mode).without_rules:
        warnings.append(f"--userspace-listen has no effect in {config.mode} mode")
    return RunOptions(
        config=config,
        config_file=path,
        config_data=data,
        write_config_to=values.get("write-config-to", ""),
        cleanup=values.get("cleanup", False),
        cleanup_force=values.get("cleanup-force", False),
        cleanup_variant=_variant(values),
        init_only=values.get("init-only", False),
        master=values.get("master", ""),
        manifests=values.get("manifests", ()),
        userspace_listen=values.get("userspace-listen", False),
        journal=values.get("journal", ""),
        journal_bytes=_journal_bytes(values),
        status_page=_status_page(values),
        version=values.get("version", ""),
        flags={
            name: show(values[name]) if name in values else flag.default_text or show(_empty(flag.kind))
            for name, flag in flags.items()
        },
        warnings=(*warnings, *remarks(config.feature_gates)),
        unknown_fields=tuple(unknown),
        log_file=values.get("log-file", ""),
        given=values,
    )


def read(path: str) -> bytes:
    """Reads a configuration file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return read_file(path)
    except OSError as e:
        raise ConfigError(f"--config: {path}: {e.strerror or e}") from None
    except ValueError as e:  # larger than a file may be, or a NUL in the path
        raise ConfigError(f"--config: {path}: {e}") from None


def _from_flags(values: Mapping[str, Any], platform: str) -> KubeProxyConfiguration:
    """Makes the configuration of the flags alone."""
    config = with_defaults(KubeProxyConfiguration())
    given = [flag for name, flag in known(platform).items() if name in values]
    for flag in given:
        if isinstance(flag.config, str) and flag.config and flag.name != "hostname-override":
            config = _set(config, flag.config, values[flag.name])
    section = backends.mode(config.mode).section
    for flag in given:
        if isinstance(flag.config, dict) and section in flag.config:
            config = _set(config, flag.config[section], values[flag.name])
    healthz, metrics = values.get("healthz-port", HEALTHZ_PORT), values.get("metrics-port", METRICS_PORT)
    return replace(
        without_zeros(config),
        bind_address=config.bind_address or DEFAULTS.bind_address,
        healthz_bind_address=with_port(config.healthz_bind_address, healthz) if healthz else "",
        metrics_bind_address=with_port(config.metrics_bind_address, metrics) if metrics else "",
    )


def _with_logging(
    config: KubeProxyConfiguration, values: Mapping[str, Any], platform: str
) -> KubeProxyConfiguration:
    """Applies the logging flags, which override the file. Patterns of --vmodule come before the file's."""
    for name, flag in known(platform).items():
        if name in values and isinstance(flag.config, str) and flag.config.startswith("logging."):
            value = values[name] + config.logging.vmodule if name == "vmodule" else values[name]
            config = _set(config, flag.config, value)
    return config


def _set(value: Any, path: str, new: Any) -> Any:
    """Copies a Struct with one field, named by a path of attributes, replaced."""
    name, _, rest = path.partition(".")
    return replace(value, **{name: _set(getattr(value, name), rest, new) if rest else new})


def _useless_ports(config: KubeProxyConfiguration, values: Mapping[str, Any]) -> list[str]:
    """Returns a warning for each deprecated port flag that has no effect because the address has a port."""
    found = []
    for server in ("healthz", "metrics"):
        port, address = values.get(f"{server}-port"), getattr(config, f"{server}_bind_address")
        if port and not address.endswith(f":{port}"):
            found.append(f"--{server}-port={port} has no effect: the address {address} already has a port")
    return found


def _variant(values: Mapping[str, Any]) -> Literal["", "legacy", "nf_tables"]:
    """The variant of iptables to clean up."""
    given: str = values.get("cleanup-variant", "")
    match given:
        case "":
            return ""
        case "legacy" | "nf_tables":
            if not values.get("cleanup"):
                raise ConfigError("--cleanup-variant needs --cleanup")
            return given
        case _:
            raise ConfigError(f"--cleanup-variant: {given!r:.80} is neither legacy nor nf_tables")


def _journal_bytes(values: Mapping[str, Any]) -> int:
    """How many bytes a journal may have."""
    given: Quantity | None = values.get("journal-size")
    if given is None:
        return DEFAULT_JOURNAL_BYTES
    if given.bytes < LEAST_JOURNAL_BYTES:
        raise ConfigError(f"--journal-size: {given} is less than 1Mi")
    return given.bytes


def _status_page(values: Mapping[str, Any]) -> Literal["loopback", "always", "never"]:
    """When the status page is served."""
    given: str = values.get("status-page", "loopback")
    match given:
        case "loopback" | "always" | "never":
            return given
        case _:
            raise ConfigError(f"--status-page: {given!r:.80} is none of loopback, always and never")


def _empty(kind: str) -> Any:
    return False if kind == "bool" else 0 if kind in {"int", "level"} else "0s" if kind == "duration" else ""
