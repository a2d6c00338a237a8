"""Log lines as Kubernetes' klog writes them, made by the standard logging module.

Text lines are `I1122 15:04:05.123456 12345 sync.py:123] message`: severity, month and day, time, process,
place. JSON lines have the keys of component-base: `ts` (milliseconds), `caller`, `msg`, and `v` for
information or `err` for an exception. Everything goes to stderr unless the streams are split.

The values of a message are given by name, in the one mapping that the logging module takes instead of
arguments:

    log.warning("Service %(service)s: no %(field)s", {"service": ObjectRef(*key), "field": "spec.ports"})

In a text line the values stand in the message. In a JSON line each is a field of its own, an object of the
API as klog's KObj writes it (structured logging, KEP-1602), and `msg` is the same text every time, so that
lines can be grouped by it:

    "msg": "Service {service}: no {field}", "service": {"namespace": "shop", "name": "web"}, "field": ...

klog's verbosity n becomes a numeric level that logging compares once and caches, so a line that is not
written costs one dictionary lookup:

    klog V     0, 1    2     3     4        5    6    7+
    logging    INFO    V2    V3    DEBUG    V5   V6   V7
    number     20      16    13    10       7    4    1

Code calls `log.info(...)`, `log.log(V2, ...)`, `log.debug(...)`; `setup` decides what is written.
"""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import IO, ClassVar, Final, Literal

import msgspec
from msgspec import Struct

V2: Final = 16
V3: Final = 13
V4: Final = logging.DEBUG
V5: Final = 7
V6: Final = 4
V7: Final = 1

FILE_BYTES: Final = 32 * 2**20
"""The size at which a log file is renamed and another one begun."""

OLDER_FILES: Final = 4
"""How many of the renamed files are kept."""

_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]|%)")
"""Of printf-style formatting: a value by name, or a percent sign."""


class ObjectRef(Struct, gc=False, frozen=True, omit_defaults=True):
    """An object of the API in a log line, as klog's KRef: `namespace/name` in text, an object in JSON.

    Attributes:
        namespace: empty if the object's kind has none.
        name: the object's name.
    """

    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class LogSettings(Struct, gc=False, frozen=True):
    """What to log and where to.

    Attributes:
        verbosity: klog's -v.
        vmodule: (pattern, verbosity) pairs; the first pattern that matches a module counts.
        format: "text" or "json".
        split_stream: information to stdout and errors to stderr, instead of all to stderr.
        info_buffer_size: bytes of information to collect before they are written, with split streams.
        flush_frequency: the longest time in seconds that information stays in the buffer.
        file: the file to write everything to, instead; "" for none.
    """

    verbosity: int = 0
    vmodule: tuple[tuple[str, int], ...] = ()
    format: Literal["text", "json"] = "text"
    split_stream: bool = False
    info_buffer_size: int = 0
    flush_frequency: float = 5.0
    file: str = ""


def level(verbosity: int) -> int:
    """Converts klog's verbosity to the logging level that shows it."""
    return logging.INFO if verbosity < 2 else max(V7, 22 - 3 * verbosity)


def verbosity(level: int) -> int:
    """Converts a logging level to the least klog verbosity that shows it."""
    return 0 if level >= logging.INFO else max(2, (24 - level) // 3)


def setup(options: LogSettings) -> None:
    """Configures logging. May be called again, which replaces the earlier configuration.

    Raises:
        OSError: the file cannot be opened.
    """
    logging.raiseExceptions = False  # a closed stderr must not disturb the proxy
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    formatter = JSONFormatter() if options.format == "json" else TextFormatter()
    root = logging.getLogger()
    for old in root.handlers[:]:
        if not isinstance(old, SystemLogHandler):
            root.removeHandler(old)
            old.close()
    if options.file:
        root.addHandler(_file_handler(options.file, formatter))
    elif sys.stderr is not None:  # a service of Windows has none
        _add_streams(root, options, formatter)
    for logger in _loggers():
        logger.setLevel(logging.NOTSET)
    root.setLevel(level(options.verbosity))
    _set_vmodule(options.vmodule, options.verbosity)


def report_to(report: Callable[[int, str], None]) -> None:
    """Sends warnings and errors to the log of the system, too, until the process ends.

    Args:
        report: gets the level of logging and the text of each.
    """
    logging.getLogger().addHandler(SystemLogHandler(report))


def _file_handler(path: str, formatter: logging.Formatter) -> logging.Handler:
    """Writes to a file, which is renamed when it is full; some of those are kept."""
    from logging.handlers import RotatingFileHandler

    made = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=OLDER_FILES, encoding="utf-8")
    made.setFormatter(formatter)
    return made


def _add_streams(root: logging.Logger, options: LogSettings, formatter: logging.Formatter) -> None:
    """Writes to stderr, and with split streams information to stdout."""
    errors = logging.StreamHandler(sys.stderr)
    errors.setFormatter(formatter)
    root.addHandler(errors)
    if options.split_stream:
        info = BufferedHandler(sys.stdout, options.info_buffer_size, options.flush_frequency)
        info.setFormatter(formatter)
        info.addFilter(lambda record: record.levelno < logging.ERROR)
        errors.addFilter(lambda record: record.levelno >= logging.ERROR)
        root.addHandler(info)


def set_verbosity(verbosity: int) -> None:
    """Changes how much is logged, until `setup` is called or the process ends; --vmodule stays in force."""
    vmodule = getattr(logging.getLoggerClass(), "vmodule", ())
    for logger in _loggers():
        logger.setLevel(logging.NOTSET)
    logging.getLogger().setLevel(level(verbosity))
    _set_vmodule(vmodule, verbosity)


def matches(pattern: str, module: str) -> bool:
    """Whether a --vmodule pattern matches a module.

    A pattern is compared with the last part of the module's name (`sync`) or, if it has a dot, with the end
    of the whole name (`nftables.*`, `kubeproxy.backends.*`). `*` and `?` are wildcards, and a `.py` or `.go`
    at the end is dropped.
    """
    pattern = pattern.removesuffix(".py").removesuffix(".go")
    if "." not in pattern:
        return fnmatchcase(module.rpartition(".")[2], pattern)
    return fnmatchcase(module, pattern) or fnmatchcase(module, f"*.{pattern}")


class TextFormatter(logging.Formatter):
    """klog's text lines; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._second = -1
        self._prefix = ""

    def format(self, record: logging.LogRecord) -> str:
        """Makes one line of a record, and more for its traceback."""
        second = int(record.created)
        if second != self._second:
            self._second, self._prefix = second, time.strftime("%m%d %H:%M:%S", time.localtime(second))
        micros = int((record.created - second) * 1e6)
        line = (
            f"{_severity(record.levelno)}{self._prefix}.{micros:06} {os.getpid():7}"
            f" {record.filename}:{record.lineno}] {one_line(record.getMessage())}"
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def one_line(message: str) -> str:
    """Escapes what would end the line or could forge another one, and lone surrogates."""
    return (
        message
        if message.isprintable()
        else "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    )


class JSONFormatter(logging.Formatter):
    """component-base's JSON lines; the values are fields, an exception's traceback is in `stacktrace`."""

    def format(self, record: logging.LogRecord) -> str:
        """Makes one JSON object of a record."""
        place = record.pathname.replace("\\", "/").rsplit("/", 2)[-2:]
        fields = record.args if isinstance(record.args, Mapping) else {}
        line: dict[str, object] = {
            "ts": round(record.created * 1000, 3),
            "caller": f"{'/'.join(place)}:{record.lineno}",
            "msg": _constant(record.msg) if fields else record.getMessage(),
        }
        if record.levelno < logging.ERROR:
            line["v"] = verbosity(record.levelno)
        line.update((name, _field(value)) for name, value in fields.items())
        if record.exc_info and record.exc_info[1] is not None:
            line["err"] = _field(record.exc_info[1])
            line["stacktrace"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # a file name that is not UTF-8 decodes to lone surrogates
            return msgspec.json.encode({name: _escaped(value) for name, value in line.items()}).decode()


@lru_cache(maxsize=256)
def _constant(message: str) -> str:
    """The text of a message without its values: `%(name)s` becomes `{name}`."""
    return _PLACEHOLDER.sub(lambda found: f"{{{found[1]}}}" if found[1] else "%", message)


def _field(value: object) -> object:
    """A value for JSON: text, number, object of the API, else its text, or an exception's type."""
    return value if isinstance(value, str | int | float | ObjectRef) else str(value) or type(value).__name__


def _escaped(value: object) -> object:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


class SystemLogHandler(logging.Handler):
    """Sends warnings and errors to the log of the system; it stays when `setup` is called again."""

    def __init__(self, report: Callable[[int, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one record."""
        try:
            self._report(record.levelno, self.format(record))
        except Exception:
            self.handleError(record)


class BufferedHandler(logging.Handler):
    """Writes lines in blocks: beyond `size` bytes in the buffer, every `period` seconds, and at the end."""

    def __init__(self, stream: IO[str], size: int, period: float) -> None:
        super().__init__()
        self._stream = stream
        self._size = size
        self._lines: list[str] = []
        self._held = 0
        self._closed = threading.Event()
        if size > 0:
            threading.Thread(target=self._flush_often, args=(period,), name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one record; called with the handler's lock held."""
        try:
            line = self.format(record) + "\n"
            self._lines.append(line)
            self._held += len(line)
            if self._held > self._size:
                self._write()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Writes the lines in the buffer."""
        self.acquire()
        try:
            self._write()
        except (OSError, ValueError):
            self._lines.clear()  # the stream is closed
        finally:
            self.release()

    def close(self) -> None:
        """Writes the lines in the buffer and stops."""
        self._closed.set()
        self.flush()
        super().close()

    def _write(self) -> None:
        if self._lines:
            lines, self._lines, self._held = self._lines, [], 0
            self._stream.write("".join(lines))
        self._stream.flush()

    def _flush_often(self, period: float) -> None:
        while not self._closed.wait(period):
            self.flush()


def _set_vmodule(vmodule: tuple[tuple[str, int], ...], verbosity: int) -> None:
    """Sets the level of the loggers that patterns name: those that exist now, and those made later."""

    def choose(logger: logging.Logger) -> None:
        for pattern, wanted in vmodule:
            if matches(pattern, logger.name):
                logger.setLevel(level(max(wanted, verbosity)))
                return

    class ModuleLogger(logging.Logger):
        vmodule: ClassVar[tuple[tuple[str, int], ...]] = ()

        def __init__(self, name: str, level: int = logging.NOTSET) -> None:
            super().__init__(name, level)
            choose(self)

    ModuleLogger.vmodule = vmodule  # for `set_verbosity`
    logging.setLoggerClass(ModuleLogger if vmodule else logging.Logger)
    for logger in _loggers():
        choose(logger)


def _loggers() -> list[logging.Logger]:
    found = logging.getLogger().manager.loggerDict.values()
    return [logger for logger in found if isinstance(logger, logging.Logger)]


def _severity(level: int) -> str:
    if level < logging.WARNING:
        return "I"
    return "W" if level < logging.ERROR else "E" if level < logging.CRITICAL else "F"
