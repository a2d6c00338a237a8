"""Reads a command line by the table of flags, with the syntax of pflag, which Kubernetes programs share.

`--name=value`, `--name value`, `--bool`, `--bool=false`, `-v2`, `-v 2`, `-v=2`, underscores for dashes, lists
that are repeated or comma separated, `--` to end the flags. A flag that can stand alone never takes the next
argument. argparse differs in most of these, so it is not used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kubeproxy.config import ConfigError
from kubeproxy.config.flags import FLAGS, Flag, known
from kubeproxy.config.kinds import KINDS


def parse(arguments: Sequence[str], platform: str) -> dict[str, Any]:
    """Reads the arguments after the program's name.

    Args:
        arguments: as in sys.argv[1:].
        platform: `sys.platform`; some flags exist on one platform only.

    Returns:
        The value of each flag that was given, by its name.

    Raises:
        ConfigError: a flag is unknown, lacks its value or has a bad one, or there are other arguments.
    """
    flags = known(platform)
    shorts = {flag.short: flag for flag in flags.values() if flag.short}
    values: dict[str, Any] = {}
    rest = list(reversed(arguments))
    others: list[str] = []
    while rest:
        argument = rest.pop()
        if argument == "--":
            others += reversed(rest)
            break
        if argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            flag = flags.get(name.replace("_", "-"))
            if flag is None:
                raise ConfigError(_unknown(argument, name.replace("_", "-"), flags))
            _store(values, flag, text if equals else None, rest)
        elif argument.startswith("-") and len(argument) > 1:
            _letters(argument, shorts, flags, values, rest)
        elif argument:
            others.append(argument)
    if others:
        listed = " ".join(f'"{other}"' for other in others)
        hint = "" if others[0] not in {"true", "false"} else " (a boolean is written --flag=false)"
        raise ConfigError(f'"kube-proxy" does not take any arguments, got [{listed}]{hint}')
    return values


def _letters(
    argument: str,
    shorts: Mapping[str, Flag],
    flags: Mapping[str, Flag],
    values: dict[str, Any],
    rest: list[str],
) -> None:
    """Reads one argument of one-letter flags: `-v2`, `-v=2`, `-hv2`."""
    letters = argument[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = shorts.get(letter)
        if flag is None:
            name = argument[1:].partition("=")[0].replace("_", "-")
            hint = f" (did you mean --{name}?)" if name in flags else ""
            raise ConfigError(f"unknown shorthand flag: '{letter}' in {argument}{hint}")
        if letters.startswith("="):
            _store(values, flag, letters[1:], rest)
            return
        if KINDS[flag.kind].bare:
            _store(values, flag, None, rest)
            continue
        _store(values, flag, letters or None, rest)
        return


def _store(values: dict[str, Any], flag: Flag, text: str | None, rest: list[str]) -> None:
    """Takes the value of a flag, from the next argument if it is not in the same one."""
    kind = KINDS[flag.kind]
    if text is None:
        if not kind.bare and not rest:
            raise ConfigError(f"flag needs an argument: --{flag.name}")
        text = kind.bare or rest.pop()
    try:
        value = kind.parse(text)
    except ValueError as e:
        name = f"-{flag.short}, --{flag.name}" if flag.short else f"--{flag.name}"
        raise ConfigError(f'invalid argument "{text}" for "{name}" flag: {e}') from None
    if kind.adds and flag.name in values:
        old = values[flag.name]
        value = old | value if isinstance(old, dict) else old + value
    values[flag.name] = value


def _unknown(argument: str, name: str, flags: Mapping[str, Flag]) -> str:
    from difflib import get_close_matches

    if not name or name.startswith("-"):
        return f"bad flag syntax: {argument}"
    if any(flag.name == name for flag in FLAGS):
        return f"unknown flag: --{name} (it exists on Windows only)"
    close = get_close_matches(name, flags, 1)
    return f"unknown flag: --{name}" + (f" (did you mean --{close[0]}?)" if close else "")


def help_text(platform: str, width: int = 100, commands: Sequence[str] = ()) -> str:
    """The text of -h.

    Args:
        platform: `sys.platform`.
        width: how long a line may be.
        commands: the names of the commands.
    """
    from textwrap import wrap

    lines = [
        "kube-proxy makes the Services of a Kubernetes cluster or of a folder of manifests work on this node.",
        "",
        "Usage:",
        "  kube-proxy [flags]",
    ]
    if commands:
        lines += [f"  kube-proxy {'|'.join(commands)} ...   (each with --help)"]
    group = ""
    for flag in known(platform).values():
        if flag.group != group:
            group = flag.group
            lines += ["", f"{group}:"]
        text = flag.help + (f" (default {flag.default_text})" if flag.default_text else "")
        if flag.deprecated:
            text += f" Deprecated: {flag.deprecated}."
        lines.append(f"  {flag.usage}")
        lines += wrap(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines) + "\n"
