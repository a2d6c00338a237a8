import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kubeproxy import log


@pytest.fixture(autouse=True)
def untouched():
    """Gives the logging module back as it was."""
    root = logging.getLogger()
    kept = root.handlers[:], root.level, logging.getLoggerClass(), logging.raiseExceptions
    flags = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()
    root.handlers[:], root.level = kept[0], kept[1]
    root.setLevel(kept[1])
    logging.setLoggerClass(kept[2])
    logging.raiseExceptions = kept[3]
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = flags
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.name.startswith("kubeproxy.t"):
            logger.setLevel(logging.NOTSET)


def lines(capsys):
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def record(level=logging.INFO, message="hello %s", arguments=("you",), error=None, created=None):
    made = logging.LogRecord(
        "kubeproxy.sync",
        level,
        "/usr/lib/kubeproxy/sync.py",
        123,
        message,
        arguments,
        (type(error), error, error.__traceback__) if error else None,
    )
    if created is not None:
        made.created = created
    return made


def failure():
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("it broke")
    return caught.value


class TestText:
    LINE = re.compile(r"^([IWEF])(\d{4}) (\d\d:\d\d:\d\d\.\d{6}) +(\d+) ([\w.]+):(\d+)\] (.*)$")

    @pytest.mark.parametrize(
        ("level", "letter"),
        [(1, "I"), (log.V2, "I"), (10, "I"), (20, "I"), (30, "W"), (40, "E"), (50, "F")],
    )
    def test_the_line_is_klogs(self, level, letter):
        line = log.TextFormatter().format(record(level, created=1700000000.25))
        match = self.LINE.match(line)
        assert match is not None
        severity, date, clock, process, file, number, message = match.groups()
        local = time.localtime(1700000000)
        assert (severity, file, number, message) == (letter, "sync.py", "123", "hello you")
        assert (date, clock) == (time.strftime("%m%d", local), time.strftime("%H:%M:%S", local) + ".250000")
        assert int(process) > 0

    def test_the_process_is_seven_wide(self):
        line = log.TextFormatter().format(record())
        assert re.match(r"^I\d{4} [\d:.]{15} [ \d]{7} sync\.py:123\] ", line)

    def test_seconds_that_change_change_the_line(self):
        formatter = log.TextFormatter()
        first, second = (formatter.format(record(created=t))[6:21] for t in (1700000000.0, 1700000001.5))
        assert (first[-9:], second[-9:]) == ("20.000000", "21.500000")

    def test_a_traceback_follows_the_line(self):
        first, *rest = log.TextFormatter().format(record(logging.ERROR, error=failure())).splitlines()
        assert first.endswith("] hello you")
        assert rest[0] == "Traceback (most recent call last):"
        assert rest[-1] == "RuntimeError: it broke"


class TestJSON:
    @pytest.mark.parametrize(
        ("level", "v"),
        [(30, 0), (20, 0), (log.V2, 2), (log.V3, 3), (log.V4, 4), (log.V5, 5), (log.V6, 6), (log.V7, 7)],
    )
    def test_information_has_a_verbosity(self, level, v):
        line = log.JSONFormatter().format(record(level, created=1700000000.123456))
        assert "\n" not in line
        assert list(json.loads(line).items()) == [
            ("ts", 1700000000123.456),
            ("caller", "kubeproxy/sync.py:123"),
            ("msg", "hello you"),
            ("v", v),
        ]

    def test_an_error_has_its_cause_and_no_verbosity(self):
        line = json.loads(log.JSONFormatter().format(record(logging.ERROR, error=failure())))
        assert line.keys() == {"ts", "caller", "msg", "err", "stacktrace"}
        assert line["err"] == "it broke"
        assert "RuntimeError: it broke" in line["stacktrace"]

    def test_an_error_without_text_is_named_by_its_type(self):
        line = json.loads(log.JSONFormatter().format(record(logging.ERROR, error=KeyError())))
        assert line["err"] == "KeyError"

    def test_odd_text_stays_one_line(self):
        line = log.JSONFormatter().format(record(message='a\n"b" ünï', arguments=()))
        assert json.loads(line)["msg"] == 'a\n"b" ünï'
        assert len(line.splitlines()) == 1


class TestFields:
    """The values of a message: in the text of a text line, and fields of a JSON line."""

    MESSAGE = "Service %(service)s: %(ipFamily)s took %(milliseconds).1f ms, 100%% of %(count)d: %(err)s"
    VALUES = {  # noqa: RUF012
        "service": log.ObjectRef("shop", "web"),
        "ipFamily": "IPv4",
        "milliseconds": 1.25,
        "count": 3,
        "err": OSError(2, "No such file or directory"),
    }

    def made(self, level=logging.INFO, **other):
        return record(level, self.MESSAGE, ({**self.VALUES, **other},))

    def test_text_has_them_in_place(self):
        line = log.TextFormatter().format(self.made())
        assert line.endswith(
            "] Service shop/web: IPv4 took 1.2 ms, 100% of 3: [Errno 2] No such file or directory"
        )

    def test_json_has_them_as_fields_and_a_constant_text(self):
        line = json.loads(log.JSONFormatter().format(self.made()))
        del line["ts"], line["caller"]
        assert list(line.items()) == [
            ("msg", "Service {service}: {ipFamily} took {milliseconds} ms, 100% of {count}: {err}"),
            ("v", 0),
            ("service", {"namespace": "shop", "name": "web"}),
            ("ipFamily", "IPv4"),
            ("milliseconds", 1.25),
            ("count", 3),
            ("err", "[Errno 2] No such file or directory"),
        ]

    def test_an_object_without_a_namespace_is_its_name(self):
        made = record(message="Node %(node)s", arguments=({"node": log.ObjectRef("", "a")},))
        assert log.TextFormatter().format(made).endswith("] Node a")
        assert json.loads(log.JSONFormatter().format(made))["node"] == {"name": "a"}

    def test_an_exception_is_the_error(self):
        made = record(logging.ERROR, "%(ipFamily)s: failed", ({"ipFamily": "IPv6"},), failure())
        line = json.loads(log.JSONFormatter().format(made))
        assert (line["msg"], line["ipFamily"], line["err"]) == ("{ipFamily}: failed", "IPv6", "it broke")
        assert "stacktrace" in line

    def test_any_other_value_is_its_text(self):
        line = json.loads(log.JSONFormatter().format(self.made(service=Path("/etc/x"), err=KeyError())))
        assert (line["service"], line["err"]) == ("/etc/x", "KeyError")

    def test_a_file_name_that_is_not_utf8_does_not_lose_the_line(self):
        name = os.fsdecode(b"/etc/\xff.yaml")
        for made in (self.made(err=name), self.made(err=Path(name)), record(message=name, arguments=())):
            line = log.JSONFormatter().format(made)
            line.encode()
            assert "/etc/\\udcff.yaml" in (json.loads(line).get("err"), json.loads(line)["msg"])
        assert json.loads(log.JSONFormatter().format(self.made(err=name)))["service"]["name"] == "web"

    def test_through_the_logging_module(self, capsys):
        log.setup(log.LogSettings(format="json"))
        logging.getLogger("kubeproxy.t").warning(
            "Service %(service)s is refused", {"service": log.ObjectRef("a", "b")}
        )
        (line,) = lines(capsys)[1]
        assert json.loads(line)["msg"] == "Service {service} is refused"
        assert json.loads(line)["service"] == {"namespace": "a", "name": "b"}


class TestVerbosity:
    def test_the_table_of_the_module_docstring(self):
        assert [log.level(v) for v in range(9)] == [20, 20, 16, 13, 10, 7, 4, 1, 1]
        assert log.level(2**31 - 1) == 1
        assert [log.level(v) for v in range(2, 8)] == [log.V2, log.V3, log.V4, log.V5, log.V6, log.V7]

    @pytest.mark.parametrize("level", range(1, 51))
    def test_the_verbosity_of_a_level_is_the_least_that_shows_it(self, level):
        v = log.verbosity(level)
        assert log.level(v) <= level
        assert v == 0 or log.level(v - 1) > level

    @pytest.mark.parametrize(
        ("verbosity", "seen"),
        [(0, "abc"), (1, "abc"), (2, "abcd"), (3, "abcde"), (4, "abcdef"), (9, "abcdefgh")],
    )
    def test_what_is_seen(self, verbosity, seen, capsys):
        log.setup(log.LogSettings(verbosity=verbosity))
        logger = logging.getLogger("kubeproxy.test.seen")
        for level, text in zip((40, 30, 20, log.V2, log.V3, log.V4, log.V5, log.V7), "abcdefgh", strict=True):
            logger.log(level, text)
        out, err = lines(capsys)
        assert "".join(line[-1] for line in err) == seen
        assert out == []

    def test_setting_up_again_changes_it(self, capsys):
        logger = logging.getLogger("kubeproxy.test.again")
        for verbosity in (0, 4, 0):
            log.setup(log.LogSettings(verbosity=verbosity))
            logger.debug("at %d", verbosity)
        assert [line.split("] ")[1] for line in lines(capsys)[1]] == ["at 4"]

    def test_what_is_off_is_not_formatted(self):
        class Loud:
            def __str__(self):
                raise AssertionError("formatted")

        log.setup(log.LogSettings(verbosity=3))
        logging.getLogger("kubeproxy.test.off").debug("%s", Loud())


class TestVModule:
    @pytest.mark.parametrize(
        ("pattern", "module", "expected"),
        [
            ("sync", "kubeproxy.sync", True),
            ("sync", "kubeproxy.sync.inner", False),
            ("sy*", "kubeproxy.sync", True),
            ("s?nc", "kubeproxy.sync", True),
            ("s?c", "kubeproxy.sync", False),
            ("*", "kubeproxy.sync", True),
            ("sync.py", "kubeproxy.sync", True),
            ("proxier.go", "kubeproxy.sync", False),
            ("nftables.*", "kubeproxy.backends.nftables.compile", True),
            ("backends.*", "kubeproxy.backends.nftables.compile", True),
            ("kubeproxy.backends.*", "kubeproxy.backends.nftables.compile", True),
            ("kubeproxy.sync", "kubeproxy.sync", True),
            ("kubeproxy.sync", "kubeproxy.syncer", False),
            ("kubeproxy", "kubeproxy", True),
            ("SYNC", "kubeproxy.sync", False),
        ],
    )
    def test_patterns(self, pattern, module, expected):
        assert log.matches(pattern, module) is expected

    def test_a_module_says_more_than_the_rest_whenever_it_is_imported(self, capsys):
        before, other = logging.getLogger("kubeproxy.test.early"), logging.getLogger("kubeproxy.test.other")
        log.setup(log.LogSettings(verbosity=2, vmodule=(("early", 4), ("la*", 3), ("late", 9), ("other", 0))))
        after = logging.getLogger("kubeproxy.test.late")
        for logger in (before, after, other):
            for level in (log.V2, log.V3, log.V4):
                logger.log(level, "%s at %d", logger.name.split(".")[-1], log.verbosity(level))
        said = [line.split("] ")[1] for line in lines(capsys)[1]]
        assert said == ["early at 2", "early at 3", "early at 4", "late at 2", "late at 3", "other at 2"]

    def test_verbosity_changes_at_run_time_and_modules_keep_theirs(self, capsys):
        log.setup(log.LogSettings(verbosity=0, vmodule=(("early*", 4),)))
        early, other = logging.getLogger("kubeproxy.t.early"), logging.getLogger("kubeproxy.t.other")
        for verbosity in (0, 2, 6, 0):
            log.set_verbosity(verbosity)
            assert log.verbosity(other.getEffectiveLevel()) == verbosity
            assert log.verbosity(early.getEffectiveLevel()) == max(verbosity, 4)
            late = logging.getLogger(f"kubeproxy.t.early{verbosity}")
            assert log.verbosity(late.getEffectiveLevel()) == max(verbosity, 4)

    def test_setting_up_without_patterns_forgets_them(self, capsys):
        logger = logging.getLogger("kubeproxy.test.forgotten")
        log.setup(log.LogSettings(vmodule=(("forgotten", 4),)))
        log.setup(log.LogSettings())
        logger.debug("unseen")
        assert lines(capsys) == ([], [])


class TestStreams:
    def test_all_goes_to_stderr(self, capsys):
        log.setup(log.LogSettings(format="json"))
        logger = logging.getLogger("kubeproxy.test.streams")
        logger.info("a")
        logger.error("b")
        out, err = lines(capsys)
        assert (out, [json.loads(line)["msg"] for line in err]) == ([], ["a", "b"])

    @pytest.mark.parametrize("size", [0, 1000])
    def test_split_streams(self, size, capsys):
        log.setup(log.LogSettings(split_stream=True, info_buffer_size=size, flush_frequency=3600))
        logger = logging.getLogger("kubeproxy.test.streams")
        logger.info("information")
        logger.warning("warning")
        logger.error("error")
        assert len(capsys.readouterr().out.splitlines()) == (0 if size else 2)
        log.setup(log.LogSettings())
        out, err = lines(capsys)
        assert [line.split("] ")[1] for line in out] == (["information", "warning"] if size else [])
        assert err == []

    def test_errors_of_split_streams_are_on_stderr(self, capsys):
        log.setup(log.LogSettings(split_stream=True))
        logger = logging.getLogger("kubeproxy.test.streams")
        logger.info("information")
        logger.error("error")
        out, err = lines(capsys)
        assert ([line[-11:] for line in out], [line[-5:] for line in err]) == (["information"], ["error"])


class TestBuffer:
    def handler(self, size, period=3600.0):
        stream = io.StringIO()
        handler = log.BufferedHandler(stream, size, period)
        handler.setFormatter(logging.Formatter("%(message)s"))
        return handler, stream

    def test_lines_wait_until_they_are_many(self):
        handler, stream = self.handler(10)
        handler.handle(record(message="1234", arguments=()))
        handler.handle(record(message="1234", arguments=()))
        assert stream.getvalue() == ""
        handler.handle(record(message="5", arguments=()))
        assert stream.getvalue() == "1234\n1234\n5\n"
        handler.close()

    def test_lines_wait_until_it_is_time(self):
        handler, stream = self.handler(1000, period=0.001)
        handler.handle(record())
        while not stream.getvalue():
            time.sleep(0.001)
        assert stream.getvalue() == "hello you\n"
        handler.close()

    def test_closing_writes_the_rest(self):
        handler, stream = self.handler(1000)
        handler.handle(record())
        handler.close()
        assert stream.getvalue() == "hello you\n"

    def test_without_size_nothing_waits(self):
        handler, stream = self.handler(0)
        handler.handle(record())
        assert stream.getvalue() == "hello you\n"
        handler.close()

    def test_a_closed_stream_harms_nobody(self):
        handler, stream = self.handler(1000)
        handler.handle(record())
        stream.close()
        handler.flush()
        handler.close()


def run(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True, text=True, timeout=60
    )


class TestFile:
    def test_all_goes_to_the_file_and_nothing_to_the_streams(self, tmp_path, capsys):
        file = tmp_path / "kube-proxy.log"
        settings = log.LogSettings(file=str(file), split_stream=True)
        for _ in range(2):  # the second time continues the file
            log.setup(settings)
            logging.getLogger("kubeproxy.t").info("information, ü")
            logging.getLogger("kubeproxy.t").error("an error")
        assert [line.partition("] ")[2] for line in file.read_text("utf-8").splitlines()] == [
            "information, ü",
            "an error",
        ] * 2
        assert lines(capsys) == ([], [])

    def test_a_full_file_is_renamed_and_some_of_those_are_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(log, "FILE_BYTES", 1000)
        log.setup(log.LogSettings(file=str(tmp_path / "log")))
        for number in range(200):
            logging.getLogger("kubeproxy.t").info("line %d", number)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log", *(f"log.{n}" for n in range(1, 5))]
        assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
        assert (tmp_path / "log").read_text().endswith("line 199\n")

    def test_a_file_that_cannot_be_opened_is_an_error(self, tmp_path):
        with pytest.raises(OSError, match="none"):
            log.setup(log.LogSettings(file=str(tmp_path / "none" / "log")))


class TestSystemLog:
    def test_warnings_and_errors_are_reported_also_after_another_setup(self, capsys):
        reported = []
        log.report_to(lambda level, text: reported.append((level, text)))
        log.setup(log.LogSettings())
        for level in (logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger("kubeproxy.t").log(level, "%(count)d of them", {"count": level})
        assert reported == [(30, "30 of them"), (40, "40 of them")]
        assert len(lines(capsys)[1]) == 3

    def test_a_log_that_fails_harms_nobody(self, capsys):
        def broken(level, text):
            raise OSError

        log.report_to(broken)
        log.setup(log.LogSettings())
        logging.getLogger("kubeproxy.t").error("seen")
        assert "seen" in lines(capsys)[1][0]

    def test_without_streams_there_is_nothing_to_write_to(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        monkeypatch.setattr(sys, "stdout", None)
        log.setup(log.LogSettings(split_stream=True))
        logging.getLogger("kubeproxy.t").error("lost")
        assert logging.getLogger().handlers == []


def test_the_end_of_the_process_writes_what_is_buffered():
    done = run("""
        import logging
        from kubeproxy import log
        log.setup(log.LogSettings(split_stream=True, info_buffer_size=10_000, flush_frequency=3600))
        logging.getLogger("kubeproxy.x").info("the last words")
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("] the last words\n")


def test_a_closed_stderr_harms_nobody():
    done = run("""
        import logging, os
        from kubeproxy import log
        log.setup(log.LogSettings())
        os.close(2)
        logging.getLogger("kubeproxy.x").error("to nobody")
        print("still here")
    """)
    assert done.stdout == "still here\n"


def test_logging_config_is_not_imported():
    done = run("""
        import sys
        import kubeproxy.log
        print("logging.config" in sys.modules)
    """)
    assert done.stdout == "False\n"


def test_a_message_stays_on_its_line():
    record = logging.LogRecord("x", logging.INFO, "/a/b.py", 1, "a %s", ("b\nI0101 forged\x1b[31m",), None)
    line = log.TextFormatter().format(record)
    assert line.endswith("] a b\\nI0101 forged\\x1b[31m")
