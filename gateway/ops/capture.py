"""Lines that libraries, asyncio and the interpreter write: log records, warnings and tracebacks.

Without this they go to stderr as text. In a container both streams are one, so a log of JSON would have lines that are
none. A log for people keeps them as they are.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType

from .log import Log

#: The levels of `logging`, by the names that the log has.
_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warning"))


class Capture(logging.Handler):
    """Writes each record of `logging` as a line of the log. Thread-safe."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = next((name for least, name in _LEVELS if record.levelno >= least), "info")
        facts: dict[str, object] = {"logger": record.name}
        if record.exc_info:
            facts["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        try:
            message = record.getMessage()
        except Exception:  # a library's format string that does not fit its arguments
            message = str(record.msg)
        self._log.say_at_once(level, message, **facts)


def capture(log: Log) -> None:
    """Write what libraries and the interpreter report as lines of this log, until the process ends. A log for people
    changes nothing."""
    if not log.as_json:
        return
    logging.getLogger().addHandler(Capture(log))
    logging.captureWarnings(True)

    def uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            told = "".join(traceback.format_exception(kind, error, trace))
            log.say_at_once("error", "an exception was not caught", error=repr(error), traceback=told)
            log.close()

    def in_thread(args: threading.ExceptHookArgs) -> None:
        name = "" if args.thread is None else args.thread.name
        told = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        log.say_at_once("error", "an exception ended a thread", thread=name, traceback=told)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        told = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        what = args.err_msg or "an exception was ignored"
        log.say_at_once("error", what, object=repr(args.object), traceback=told)

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
