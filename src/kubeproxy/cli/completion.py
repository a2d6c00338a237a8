"""`kube-proxy completion`: writes a script that completes commands and options in a shell."""

import argparse
import sys
from typing import Final

from kubeproxy.cli import COMMANDS, command
from kubeproxy.cli.command import Asked, Command
from kubeproxy.config.flags import known


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell")


def _run(asked: Asked) -> int:
    script = _bash if asked.arguments.shell == "bash" else _zsh
    sys.stdout.write(script())
    return 0


def words(name: str) -> list[str]:
    """The options of a command, "" for the daemon; commands that read Services also have its flags."""
    flags = [f"--{flag}" for flag in known(sys.platform)]
    if not name:
        return sorted({*COMMANDS, *flags})
    found = command.load(name)
    own = [option for action in command.parser(found)._actions for option in action.option_strings]  # noqa: SLF001
    values = [str(choice) for action in command.parser(found)._actions for choice in action.choices or ()]  # noqa: SLF001
    return sorted({*own, *values, *(flags if found.sources else ())})


def _bash() -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(words(name))}" ;;' for name in COMMANDS)
    return f"""\
# bash completion for kube-proxy
_kube_proxy() {{
  local words
  case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
    1:*) words="{" ".join(words(""))}" ;;
    *) case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="{" ".join(w for w in words("") if w.startswith("-"))}" ;;
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  if [ ${{#COMPREPLY[@]}} -eq 0 ]; then compopt -o default; fi
}}
complete -F _kube_proxy kube-proxy
"""


def _zsh() -> str:
    summaries = "\n".join(f'    "{name}:{command.load(name).summary}"' for name in COMMANDS)
    cases = "\n".join(f"    {name}) compadd -- {' '.join(words(name))} ;;" for name in COMMANDS)
    return f"""\
#compdef kube-proxy
_kube_proxy() {{
  local -a commands=(
{summaries}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    compadd -- {" ".join(w for w in words("") if w.startswith("-"))}
    return
  fi
  case "$words[2]" in
{cases}
    *) compadd -- {" ".join(w for w in words("") if w.startswith("-"))} ;;
  esac
  _files
}}
compdef _kube_proxy kube-proxy
"""


COMMAND: Final = Command(
    name="completion",
    summary="Write a script that completes commands and options in a shell.",
    description="Writes a script that completes commands and options in bash or zsh.",
    examples=(
        ("In this bash:", "source <(kube-proxy completion bash)"),
        ("In each zsh:", 'kube-proxy completion zsh > "${fpath[1]}/_kube-proxy"'),
    ),
    statuses=((0, "the script was written"),),
    options=_options,
    run=_run,
    sources=False,
)
