"""The manual page holds each flag of the program, and groff reads it without a warning."""

import re
import shutil
import subprocess

import pytest

from kubeproxy.config.flags import known
from tools.man import escaped, page

REQUESTS = {"TH", "SH", "SS", "PP", "TP", "B", "BR", "RI", "RS", "RE", "nf", "fi", "nh", "ad"}


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_each_flag_is_there_with_its_help(platform):
    text = page(platform)
    assert text.count("\n.TP\n\\fB") >= len(known(platform))
    for flag in known(platform).values():
        (entry,) = re.findall(
            rf"^\.TP\n(\\fB.*{re.escape(escaped('--' + flag.name))}\\fR.*)\n(.*)$", text, re.MULTILINE
        )
        assert escaped(flag.help) in entry[1]
        assert escaped(flag.default_text) in entry[1]
        assert (" \\fI" in entry[0]) == (" " in flag.usage.removeprefix(f"-{flag.short}, "))


def test_flags_of_another_platform_are_not():
    assert "windows\\-service" not in page("linux")


def test_only_requests_of_man_are_used_and_no_text_is_one():
    for line in page().splitlines():
        if line.startswith((".", "'")):
            assert line[1:].partition(" ")[0] in REQUESTS
        assert not re.search(r"(?<!\\)-", line) or line.startswith(".TH"), f"a dash that is not ASCII: {line}"
    assert escaped(".x\n'y\\z-") == "\\&.x\n\\&'y\\ez\\-"


def test_groff_has_no_warning():
    groff = shutil.which("groff")
    if groff:  # not part of a minimal Debian; the tests above hold without it
        run = subprocess.run(
            [groff, "-man", "-ww", "-z"], input=page(), text=True, capture_output=True, check=True
        )
        assert run.stderr == ""
