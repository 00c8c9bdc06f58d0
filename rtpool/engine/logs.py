"""
How a pool tells what happens: one call writes a line to the log and an entry to the flight recorder.

Lines begin with ``>`` for what was sent, ``<`` received, ``=`` for how something is from now on, ``!`` for trouble and
``-`` for what is put off or left undone. Each has an ``event`` and fields, which structured loggers find as attributes
of the record; README lists them.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from rtpool.engine.flight_recorder import FlightRecorder
from rtpool.engine.redaction import Redactor
from rtpool.options import PoolOptions
from rtpool.protocol.messages import ACCESS_TOKEN, PHX_JOIN
from rtpool.protocol.refusals import printable
from rtpool.protocol.session import OutgoingFrame

__all__ = ["Log", "Logs", "logger_for"]

#: Seconds between two lines of `Log.rarely` about one subject; subjects that are remembered; and seconds between two
#: searches for those that need not be any longer.
RARELY, SUBJECTS, SWEEP = 10.0, 1_000, 1.0
#: All further subjects, which are one.
OTHERS = object()
#: Characters of a payload that are shown, at most so many before it, and bytes that are looked at for secrets: one may
#: begin in what is shown.
ELIDED, HEAD, LOOKED_AT = 75, 400, 1_000


class Log:
    """
    A logger of a pool, and its recorder. What the logger raises is not ours: handlers, filters and adapters are user
    code, and a line that cannot be written must not take a thread along. It is told by the library's own logger.

    Every field is a JSON value, and none has the name of an attribute of `logging.LogRecord`. The words are `%`-style
    with the names of fields. A field `error` may be an exception: it becomes the name of its type, and `why`, `code`
    and `reason` are taken from it.

    Args:
        logger: a `logging.Logger` or `LoggerAdapter`.
        recorder: keeps what is told, None for nobody.
        hide: takes secrets out of what frames and errors hold.
        learn: has `hide` know one more.
        debug, record_frames: as in `PoolOptions`.
        always: fields that every line has.

    Thread-safety: as the logger's.
    """

    def __init__(
        self,
        logger: Any,
        recorder: FlightRecorder | None = None,
        *,
        hide: Callable[[str], str] = str,
        learn: Callable[[str], None] | None = None,
        debug: bool = False,
        record_frames: bool = False,
        **always: str,
    ) -> None:
        self._logger = logger
        self._recorder = recorder
        #: Takes secrets out of a text.
        self.hide = hide
        self._learn = learn
        self._debug = debug
        self._records_frames = record_frames and recorder is not None
        self._always = always
        self._told: dict[tuple[str, object], tuple[float, int]] = {}  # when, and how many were not told since
        self._swept_at = 0.0

    def note(self, event: str, words: str, /, **fields: Any) -> None:
        """Tell the recorder alone."""
        if self._recorder is not None:
            self._recorder.add(logging.INFO, words, self._all(event, fields))

    def debug(self, event: str, words: str, /, **fields: Any) -> None:
        """Tell at DEBUG."""
        self._tell(logging.DEBUG, words, self._all(event, fields))

    def info(self, event: str, words: str, /, **fields: Any) -> None:
        """Tell at INFO."""
        self._tell(logging.INFO, words, self._all(event, fields))

    def warning(self, event: str, words: str, /, **fields: Any) -> None:
        """Tell at WARNING."""
        self._tell(logging.WARNING, words, self._all(event, fields))

    def error(self, event: str, words: str, /, **fields: Any) -> None:
        """Tell at ERROR."""
        self._tell(logging.ERROR, words, self._all(event, fields))

    def rarely(self, subject: object, event: str, words: str, /, **fields: Any) -> None:
        """
        Tell at WARNING what comes in floods: of each subject every `RARELY` seconds, and how much was left out.
        Subjects beyond so many are taken for one.
        """
        now = time.monotonic()
        if (event, subject) not in self._told and len(self._told) >= SUBJECTS:
            self._sweep(now)
            if len(self._told) >= SUBJECTS:
                subject = OTHERS
        told_at, untold = self._told.get((event, subject), (-RARELY, 0))
        if now - told_at < RARELY:
            self._told[event, subject] = told_at, untold + 1
            return
        self._told[event, subject] = now, 0
        if untold:
            words += "; %(untold)d more like it in between"
        self._tell(logging.WARNING, words, self._all(event, {**fields, "untold": untold}))

    def _sweep(self, now: float) -> None:
        """Forget the subjects of long ago; what was not told of them is told with the others."""
        if now - self._swept_at < SWEEP:
            return
        self._swept_at = now
        kept: dict[tuple[str, object], tuple[float, int]] = {}
        for (event, subject), (told_at, untold) in list(self._told.items()):
            if now - told_at < RARELY:
                kept[event, subject] = told_at, untold + kept.get((event, subject), (0.0, 0))[1]
            elif untold:
                at, before = kept.get((event, OTHERS), (-RARELY, 0))
                kept[event, OTHERS] = at, before + untold
        self._told = kept

    def exception(self, event: str, words: str, /, **fields: Any) -> None:
        """
        Tell at ERROR, with the exception that is being handled; as text without secrets where its traceback has some.
        """
        self._tell(logging.ERROR, words, self._all(event, fields), exc_info=True)

    def bug(self, event: str, words: str, /, **fields: Any) -> None:
        """
        Tell what should not be, and now and then what happened before: at ERROR with the exception that is being
        handled, at WARNING without one.
        """
        failed = sys.exc_info()[0] is not None
        before = self._recorder.for_error() if self._recorder is not None else ""
        level = logging.ERROR if failed else logging.WARNING
        self._tell(level, words, self._all(event, fields), exc_info=failed, before=before)

    def keep_secret(self, text: str | None) -> None:
        """Show no line with a token that came later."""
        if text and self._learn is not None:
            self._learn(text)

    # Frames

    @property
    def tells_frames(self) -> bool:
        """Whether frames are told at all; to be asked once, not for each."""
        return self._debug or self._records_frames

    def received(self, connection: int, data: bytes) -> None:
        """A frame that came."""
        fields = {"connection": connection, "bytes": len(data), "data": self._elided(data, head=True)}
        self._frame("frame_received", "< %(connection)d %(bytes)d bytes %(data)r", fields)

    def sent(self, connection: int, frame: OutgoingFrame) -> None:
        """A frame that was handed to the transport: the log never sees its payload, which may hold a token."""
        fields = {"connection": connection, "what": printable(frame.what), "ref": frame.ref, "bytes": len(frame.data)}
        words, shown = "> %(connection)d %(what)s ref %(ref)s, %(bytes)d bytes", ""
        if self._records_frames and frame.event not in (PHX_JOIN, ACCESS_TOKEN):
            fields["data"], shown = self._elided(frame.data, head=False), " %(data)r"
        self._frame("frame_sent", words, fields, shown)

    def _frame(self, event: str, words: str, fields: dict[str, Any], shown: str = "") -> None:
        every = self._all(event, fields)
        if self._records_frames and self._recorder is not None:
            self._recorder.add(logging.DEBUG, words + shown, every, frame=True)
        if self._debug:
            if shown:
                del every["data"]
            self._write(logging.DEBUG, words, every)

    def _elided(self, data: bytes, *, head: bool) -> str:
        """A frame as it is shown, with or without what is before its payload."""
        text = self.hide(bytes(data[:LOOKED_AT]).decode("utf-8", "backslashreplace"))
        begin = max(0, text.find("{", 0, HEAD))
        return text[0 if head else begin : begin + ELIDED]

    # Inside

    def _all(self, event: str, fields: dict[str, Any]) -> dict[str, Any]:
        error = fields.get("error")
        if isinstance(error, BaseException):
            # A server may repeat what it was sent.
            fields["error"], fields["why"] = type(error).__name__, self.hide(str(error))
            codes = (getattr(error, name, None) for name in ("code", "status", "close_code"))
            fields["code"] = next(filter(None, codes), None)
            reason = getattr(error, "reason", None)
            fields["reason"] = self.hide(reason) if isinstance(reason, str) else reason
        return {"event": event, **self._always, **fields}

    def _tell(
        self, level: int, words: str, fields: dict[str, Any], *, exc_info: bool = False, before: str = ""
    ) -> None:
        if self._recorder is not None:
            self._recorder.add(level, words, fields)
        self._write(level, words, fields, exc_info, before)

    def _write(self, level: int, words: str, fields: dict[str, Any], exc_info: bool = False, before: str = "") -> None:
        try:
            logger = self._logger
            if not logger.isEnabledFor(level):
                return
            args = fields
            if exc_info:
                raised = "".join(traceback.format_exception(*sys.exc_info()))
                shown = self.hide(raised)
                if shown != raised:  # a user's exception that names the URL of a request, for one
                    exc_info, words, args = False, words + "\n%(traceback)s", {**args, "traceback": shown.rstrip()}
            if before:
                words, args = words + "; before that:\n%(before)s", {**args, "before": before}
            keywords: Any = {"extra": fields, "exc_info": exc_info or None, "stacklevel": 4}
            while isinstance(logger, logging.LoggerAdapter):
                words, keywords = logger.process(words, keywords)
                logger = logger.logger
            # Before Python 3.13 an adapter puts its own fields in the place of ours.
            keywords["extra"] = {**fields, **(keywords.get("extra") or {})}
            logger.log(level, words, args, **keywords)
        except (Exception, SystemExit) as error:  # user code
            if isinstance(error, SystemExit) and threading.current_thread() is threading.main_thread():
                raise  # of a signal handler, perhaps
            if logging.lastResort is not None:
                told = ("! the logger of a pool raised %r at %r", (error, words))
                logging.lastResort.handle(logging.LogRecord("rtpool", logging.ERROR, __file__, 0, *told, None))


class Logs:
    """
    The logs of one pool, and its recorder.

    Args:
        options: the pool's.
        name: the pool's.
        secrets: what no frame may show, beside what the options hold.

    Attributes:
        pool: its beginning, its status, its end, what its callbacks raise.
        io: connections.
        session: joins, refusals, gaps, tokens.
        dispatch: workers, and what mailboxes lose.
        debug: what a `rtpool.debug.Debugger` finds.
        recorder: the flight recorder; None where the options want none.

    Thread-safety: immutable.
    """

    def __init__(self, options: PoolOptions, name: str, *secrets: str | None) -> None:
        self.recorder = FlightRecorder(options.recorder_size) if options.recorder_size else None
        #: Takes secrets out of a text.
        redactor = Redactor(options, *secrets)
        self.hide = redactor.hide_all
        self.pool, self.io, self.session, self.dispatch, self.debug = (
            Log(
                _given(options, room),
                self.recorder,
                hide=self.hide,
                learn=redactor.learn,
                debug=options.debug,
                record_frames=options.record_frames,
                pool=name,
            )
            for room in ("pool", "io", "session", "dispatch", "debug")
        )


def logger_for(options: PoolOptions, room: str) -> Log:
    """A log that keeps nothing, for what knows of no pool."""
    return Log(_given(options, room))


def _given(options: PoolOptions, room: str) -> Any:
    given = options.logger
    if given is None:
        return logging.getLogger(f"rtpool.{room}")
    return given.getChild(room) if isinstance(given, logging.Logger) else given
