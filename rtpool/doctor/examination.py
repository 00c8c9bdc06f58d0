"""
The steps in order, each in its time: a step that failed has those left out that need it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import attrs

from rtpool.doctor import address, channels, connection, credentials, network
from rtpool.doctor.case import Case
from rtpool.doctor.report import Finding, Report, Step, cleaned, failed, skipped
from rtpool.engine.threads import PoolThread, outcome_of
from rtpool.protocol.refusals import printable

__all__ = ["CHECKS", "Check", "Examination"]


@attrs.frozen
class Check:
    """
    One step to be done.

    Attributes:
        name: of the step.
        look: finds out.
        needs: steps without which it makes no sense.
    """

    name: str
    look: Callable[[Case], Finding]
    needs: tuple[str, ...] = ()


#: Stands for the step that joins the topic: ``private`` where that was asked for, else ``join``.
CHANNEL = "channel"

#: All steps, in order. What the limits are is asked before many broadcasts are sent, which count.
CHECKS = (
    Check("url", address.read_url),
    Check("key", credentials.read_key, ("url",)),
    Check("token", credentials.read_token, ("url",)),
    Check("dns", address.look_up, ("url",)),
    Check("tcp", network.connect, ("dns",)),
    Check("proxy", network.through_proxy, ("tcp",)),
    Check("tls", network.shake_hands, ("proxy",)),
    Check("upgrade", connection.upgrade, ("tls",)),
    Check("clock", connection.compare_clocks, ("upgrade",)),
    Check("heartbeat", connection.beat, ("upgrade",)),
    Check("join", channels.join, ("heartbeat",)),
    Check("private", channels.ask_permission, ("heartbeat",)),
    Check("replication", channels.watch_table, (CHANNEL,)),
    Check("limits", connection.list_limits, ("heartbeat",)),
    Check("broadcast", channels.echo, (CHANNEL,)),
)


class Examination:
    """
    Runs the steps on a case.

    Each runs on a thread of its own, for a look-up of a name, say, cannot be broken off: when the time is over the
    thread is left to itself, and ends with the process.

    Args:
        case: who is examined.
        begun: called with the name of each step before it.
        done: called with each step after it, also those that are left out.

    Thread-safety: none; `begun` and `done` are called on the thread of `run`.
    """

    def __init__(
        self,
        case: Case,
        *,
        begun: Callable[[str], object] = lambda name: None,
        done: Callable[[Step], object] = lambda step: None,
    ) -> None:
        self._case, self._begun, self._done = case, begun, done
        self._steps: list[Step] = []
        self._started = time.monotonic()
        self._timed_out = False
        self._missing: dict[str, str] = {}  # steps that failed or were left out for one that did: which one

    def run(self) -> Report:
        """
        Do all steps. Ctrl-C ends it, and the report says so.
        """
        case = self._case
        case.deadline = self._started + case.timeout
        interrupted = False
        try:
            for check in CHECKS:
                self._begun(check.name)
                self._add(check.name, *self._look(check))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            case.close()
        for check in CHECKS[len(self._steps) :]:
            self._add(check.name, skipped("interrupted"), 0.0)
        return Report(tuple(self._steps), time.monotonic() - self._started, interrupted, self._timed_out)

    def _look(self, check: Check) -> tuple[Finding, float]:
        joins = "private" if self._case.private else "join"
        needs = [joins if name == CHANNEL else name for name in check.needs]
        lacking = next((self._missing[name] for name in needs if name in self._missing), None)
        if lacking is not None:
            self._missing[check.name] = lacking
            return skipped(f"needs {lacking}"), 0.0
        started = time.monotonic()
        finding = self._bounded(check)
        if finding.status == "failed":
            self._missing[check.name] = check.name
        return finding, time.monotonic() - started

    def _bounded(self, check: Check) -> Finding:
        case = self._case
        if not case.left:
            self._timed_out = True
            return skipped("no time was left")
        outcome: Future[Finding] = Future()

        def look() -> None:
            try:
                outcome.set_result(check.look(case))
            except Exception as error:  # a step has no right to end the others
                outcome.set_result(
                    failed(f"{type(error).__name__}: {error}", "The doctor did not expect this; please report it.")
                )

        PoolThread(look, "rtpool-doctor").start()
        try:
            return outcome_of(outcome, case.left)
        except FutureTimeout:
            self._timed_out = True
            case.close(0.0)
            return failed(
                f"not done when the {case.timeout:g} s of --timeout were over",
                "Give it more time, or see what hangs: it is this step.",
            )

    def _add(self, name: str, finding: Finding, seconds: float) -> None:
        hide = self._case.hide
        # Advice alone has lines of its own; what comes from outside was put on one where it came in.
        words, advice = printable(hide(finding.words)), "\n".join(map(printable, hide(finding.advice).split("\n")))
        step = Step(name, finding.status, words, advice, seconds, cleaned(finding.details, hide))
        self._steps.append(step)
        self._done(step)
