"""Logs: one event a line, a fixed word with fields; also for log lines of libraries."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from logging.handlers import WatchedFileHandler
from typing import Any

import structlog

from worker.core.errors import Misconfigured
from worker.core.plain import plain

# Chatty at info, and of no use to an operator there
QUIET = (
    "amqp",
    "kombu",
    "keystoneauth",
    "openstack",
    "oslo",
    "oslo_messaging",
    "stevedore",
    "urllib3",
    "requests",
)
JOURNAL = "/run/systemd/journal/socket"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
# The journal knows the time, and the traceback is part of the message
UNTOLD = ("event", "level", "timestamp", "exception", "stack")
# Longest name of a field that the journal takes
NAME = 64


class Journal(logging.Handler):
    """Log lines as entries of systemd's journal; Misconfigured if there is none.

    Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise Misconfigured(
                f"[log] format: journal: {path}: {error.strerror}; is this a systemd host?"
            ) from error

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line, which the formatter gives as JSON; print it to standard error if the
        journal does not take it."""
        try:
            line = self.format(record)
            entry = b"".join(_fields(json.loads(line)))
            try:
                self._send(entry)
            except OSError:
                print(line, file=sys.stderr)  # noqa: T201  there is nowhere else to tell it
        except Exception:
            # As in logging's own handlers: a line that can't be sent ends nothing
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.send(entry)
        except ConnectionError:
            # The journal was started anew
            self._socket.connect(self._path)
            self._socket.send(entry)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(entry)

    def _send_file(self, entry: bytes) -> None:
        """Send an entry that is too large for a datagram as a sealed file in memory: the journal
        takes no other."""
        descriptor = os.memfd_create("entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(descriptor, "wb") as file:
            file.write(entry)
            file.flush()
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            socket.send_fds(self._socket, [b""], [descriptor])


def _fields(line: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the fields of an entry: the text for people in MESSAGE, and each key of the line on
    its own, in upper case."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in line.items()
        if key not in UNTOLD
    }
    told = [f"{key}={_quoted(text)}" for key, text in texts.items() if key != "logger"]
    event = str(line.get("event", ""))
    lines = [
        " ".join([event, *told]),
        *(str(line[key]) for key in ("stack", "exception") if key in line),
    ]
    yield _field("MESSAGE", "\n".join(lines))
    yield _field("PRIORITY", str(PRIORITIES.get(line.get("level", ""), 6)))
    yield _field("SYSLOG_IDENTIFIER", "image-volume-worker")
    yield _field("EVENT", event)
    for key, value in texts.items():
        # Names that begin with _ are the journal's own, and it drops names that it can't read
        yield _field(re.sub(r"[^A-Z0-9]+", "_", key.upper()).strip("_")[:NAME], value)


def _quoted(text: str) -> str:
    return (
        text
        if text.isprintable() and " " not in text
        else plain(json.dumps(text, ensure_ascii=False))
    )


def _field(name: str, text: str) -> bytes:
    value = text.encode(errors="backslashreplace")
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


class LogFile(WatchedFileHandler):
    """A log file, which is opened again once logrotate has moved it. A line that can't be written
    goes to standard error: logging itself would raise in whoever wanted to log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            super().emit(record)
        except Exception as error:
            # The folder may be away for a moment, or not let us make a file
            with contextlib.suppress(Exception):
                print(f"{error}: {self.format(record)}", file=sys.stderr)  # noqa: T201  there is nowhere else to tell it


def _opened(file: str) -> logging.Handler:
    """Return the handler of a file, which is opened again once logrotate has moved it; of standard
    error without one."""
    if not file:
        return logging.StreamHandler()
    try:
        return LogFile(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise Misconfigured(f"[DEFAULT] log_file: {file}: {error.strerror}") from error


def _show_hidden(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Make each text one line that steers no terminal, whoever has written it. JSON does that by
    itself."""
    return {
        key: value
        if key in ("exception", "stack") or not isinstance(value, str)
        else plain(value, keep="")
        for key, value in line.items()
    }


def setup(*, level: str = "info", style: str = "auto", file: str = "") -> None:
    """Send every log line of this process to standard error, or to a file, as JSON or text (`auto`:
    text on a terminal).

    `journal`: to systemd's journal, with fields. Misconfigured if there is no journal, or the file
    can't be opened.
    """
    text = style == "text" or (style == "auto" and not file and sys.stderr.isatty())
    handler = Journal(JOURNAL) if style == "journal" else _opened(file)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[structlog.typing.Processor] = (
        # Its default prints local variables with a traceback, and a login's hold the password
        [
            _show_hidden,
            structlog.dev.ConsoleRenderer(
                colors=not file and sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel("DEBUG" if level == "debug" else "WARNING")
