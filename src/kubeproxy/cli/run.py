"""The daemon's command line: reads flags and configuration, reports what is invalid, and runs `app`.

What does not need the daemon (-h, --version, --write-config-to, an invalid flag or field) is done here,
without importing it. Exit status: 0 success, 1 an error, 130 interrupted by Ctrl-C.
"""

import gc
import logging
import os
import sys
from collections.abc import Sequence

from kubeproxy import __version__, log
from kubeproxy.cli import COMMANDS
from kubeproxy.config import KUBERNETES, ConfigError
from kubeproxy.config.commandline import help_text, parse
from kubeproxy.config.load import RunOptions, load
from kubeproxy.config.validate import validate

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the daemon and returns its exit status.

    Args:
        argv: the arguments after the program's name.
    """
    try:
        return _main(argv)
    except ConfigError as e:
        sys.stderr.write("".join(f"Error: {error}\n" for error in e.errors))
        return 1
    except KeyboardInterrupt:
        return 130


def version_text(form: str) -> str:
    """The line --version prints; form "raw" gives every part."""
    if form != "raw":
        return f"kube-proxy v{__version__} (compatible with Kubernetes v{KUBERNETES})\n"
    major, minor = KUBERNETES.split(".")
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f'version.Info{{Major:"{major}", Minor:"{minor}", GitVersion:"v{KUBERNETES}.0", ProxyVersion:"v{__version__}",'
        f' PythonVersion:"{python}", Compiler:"{sys.implementation.name}", Platform:"{sys.platform}"}}\n'
    )


def _main(argv: Sequence[str]) -> int:
    values = parse(argv, sys.platform)
    if values.get("help"):
        return _print(help_text(sys.platform, commands=COMMANDS))
    if values.get("version") in {"true", "raw"}:
        return _print(version_text(values["version"]))
    options = load(values, sys.platform)
    errors = validate(options.config, sys.platform)
    if errors:
        raise ConfigError(*errors)
    try:
        log.setup(options.log_settings)
    except OSError as e:
        raise ConfigError(f"--log-file: {options.log_file}: {e.strerror or e}") from None
    options.report(logger)
    if logger.isEnabledFor(log.V2):
        for name, text in options.flags.items():
            logger.log(log.V2, 'FLAG: --%(flag)s="%(setting)s"', {"flag": name, "setting": text})
    return _act(options)


def _act(options: RunOptions) -> int:
    if options.write_config_to:
        from kubeproxy.config.write import write

        write(options.config, options.write_config_to)
        logger.info("Wrote configuration to %(file)s", {"file": options.write_config_to})
        return 0
    gc.disable()  # imports and the first lists allocate much that stays; `Session` enables it
    from kubeproxy import app

    try:
        return app.run(options)
    except Exception:
        logger.critical("kube-proxy failed", exc_info=True)
        return 1


def _print(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # as with `kube-proxy -h | head`: the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
