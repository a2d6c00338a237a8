"""What the commands have in common: options, errors, exit statuses, and how results are written.

A command takes its own options and every flag of the daemon, which determine the source of Services and how
they are programmed. Without such flags the configuration of the kube-proxy that runs in this network
namespace is used (`insight.origin`). Options are parsed by argparse, flags of the daemon by the daemon's own
parser.

Exit statuses that all commands share: 1 if the question could not be answered, 130 after Ctrl-C. Each command
documents the others.
"""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

from msgspec import Struct

from kubeproxy.cli.output import Output
from kubeproxy.config import ConfigError
from kubeproxy.config.commandline import parse
from kubeproxy.config.flags import known
from kubeproxy.config.kinds import KINDS

_NEGATIVE: Final = re.compile(r"-[0-9.]")

_SILENT: Final = frozenset({"kubeproxy.host", "kubeproxy.sources.unusable", "kubeproxy.sources.watch"})
"""Loggers whose warnings are not written: the daemon reports the first, and answers have the others."""

FAILED: Final = 1
INTERRUPTED: Final = 130
COMMON_STATUSES: Final = (
    (FAILED, "the question could not be answered; the message has the reason"),
    (INTERRUPTED, "interrupted by Ctrl-C"),
)


class CommandError(Exception):
    """The question cannot be answered; the message, one line, has the reason and the remedy."""


class Asked(Struct, frozen=True):
    """A question.

    Attributes:
        arguments: the values of the command's own options.
        flags: the flags of the daemon that were given, as `commandline.parse` returns them.
        out: writes the answer.
    """

    arguments: argparse.Namespace
    flags: Mapping[str, Any]
    out: Output


class Command(Struct, frozen=True):
    """One command.

    Attributes:
        name: its name.
        summary: what it does, in one line.
        description: more about it, for --help.
        examples: what it is used for, and the command lines that do so.
        statuses: its exit statuses and what they mean, without those that all commands share.
        options: adds its own options to a parser.
        run: answers; returns the exit status. It raises CommandError, or OSError, if it cannot.
        sources: it reads Services, so it takes the flags of the daemon, --node and --json.
    """

    name: str
    summary: str
    description: str
    examples: tuple[tuple[str, str], ...]
    statuses: tuple[tuple[int, str], ...]
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Asked], int]
    sources: bool = True


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are exceptions."""

    def error(self, message: str) -> NoReturn:
        """Raises CommandError."""
        raise CommandError(f"{message}; see {self.prog} --help")


def load(name: str) -> Command:
    """The command of a name."""
    found: Command = import_module(f"kubeproxy.cli.{name}").COMMAND
    return found


def parser(command: Command) -> Parser:
    """The parser of a command's own options."""
    made = Parser(
        prog=f"kube-proxy {command.name}",
        description=command.description,
        epilog=_epilog(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.options(made)
    if command.sources:
        made.add_argument(
            "--node", metavar="NAME", default="", help="answer for this node, not for the own one"
        )
        made.add_argument("--json", action="store_true", help="write the answer as JSON")
    return made


def main(name: str, argv: Sequence[str]) -> int:
    """Runs a command and returns its exit status."""
    notes = logging.StreamHandler(sys.stderr)
    notes.addFilter(lambda record: record.name not in _SILENT)
    logging.basicConfig(level=logging.WARNING, format="Note: %(message)s", handlers=[notes])
    out = Output()
    try:
        command = load(name)
        own, others = divide(argv) if command.sources else (argv, [])
        arguments = parser(command).parse_args(with_negative_values(own))
        flags = parse(others, sys.platform)
        return command.run(Asked(arguments, flags, out))
    except ConfigError as e:
        out.error(*e.errors, as_json="--json" in argv)
    except (CommandError, OSError) as e:
        if isinstance(e, BrokenPipeError):  # as with `kube-proxy explain ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        out.error(_text(e), as_json="--json" in argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    return FAILED


def _text(error: Exception) -> str:
    """An error as a message, without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{text}; run this command as root" if error.errno in {errno.EPERM, errno.EACCES} else text


def divide(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides arguments into those of a command and flags of the daemon, each with its value."""
    flags = known(sys.platform)
    own: list[str] = []
    others: list[str] = []
    rest = list(reversed(argv))
    while rest:
        argument = rest.pop()
        if argument == "--":
            own += [argument, *reversed(rest)]
            break
        name, equals, _ = argument.removeprefix("--").partition("=")
        flag = flags.get(name.replace("_", "-")) if argument.startswith("--") else None
        if flag is None or flag.name == "help":
            own.append(argument)
            continue
        others.append(argument)
        if not equals and not KINDS[flag.kind].bare and rest:
            others.append(rest.pop())
    return own, others


def with_negative_values(argv: Sequence[str]) -> list[str]:
    """Arguments with each option and its value in one, where the value begins with a minus and a digit.

    An example is `--at -10m`: argparse takes such a value for an option.
    """
    found: list[str] = []
    for argument in argv:
        option = found[-1] if found else ""
        if _NEGATIVE.match(argument) and option.startswith("--") and "=" not in option and option != "--":
            found[-1] = f"{option}={argument}"
        else:
            found.append(argument)
    return found


def _epilog(command: Command) -> str:
    lines = ["Examples:"]
    for intent, line in command.examples:
        lines += [f"  # {intent}", f"  {line}", ""]
    lines.append("Exit status:")
    statuses = sorted((*command.statuses, *COMMON_STATUSES))
    lines += [f"  {status:<4} {meaning}" for status, meaning in statuses]
    if command.sources:
        lines += [
            "",
            "Where Services come from, and how they are programmed, is read from the kube-proxy that runs here. It can be",
            "given by the flags of the daemon, too: --config, --kubeconfig, --master, --manifests, --proxy-mode and all",
            "others that kube-proxy --help lists.",
        ]
    return "\n".join(lines)
