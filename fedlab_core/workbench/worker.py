"""One thread at a time for everything that takes long, so that buttons answer while rounds run."""

import contextlib
import ctypes
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fedlab_core.local.cores import release_threads
from fedlab_core.workbench.text import in_words

Result = TypeVar("Result")


class Busy(RuntimeError):
    """Work is under way and a second piece was refused."""


class Front(Protocol):
    """Where a worker shows what happens: a panel."""

    def say(self, kind: str, text: str) -> None:
        """Sets the status line."""

    def show_text(self, text: str) -> None:
        """Shows a text, such as a traceback; an empty one takes it away."""


Work = Callable[[], tuple[str, str] | None]
"""What the thread does; it may return what the status line says once all is done, as `Front.say` takes it."""
EXPECTED = (ValueError, FileNotFoundError, Busy)  # before training: a reader's slip, so the message says enough
TICK = 0.25  # seconds between two signs of life
LOOK = 0.05  # seconds between two looks at `stop`


@dataclass(eq=False)
class Job:
    """One piece of work: whether it has ended, and what it raised."""

    yields: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class Worker:
    """Runs one piece of work at a time in a daemon thread; whatever goes wrong is shown in the panel.

    Args:
        panel: shows messages and tracebacks.
        finish: called in the thread at the end of all work, before its last message.
        settle: called after the last message, when the thread is free again: what was put off because it was busy
            belongs here. Whoever puts something off notes it first and looks at `busy` then, so that either the one or
            the other sees it.
        tick: called several times a second while work is under way, with the seconds since it began.

    Attributes:
        stop: set to ask the work to end; cleared when new work starts.
        training: set by the work once its settings have been accepted: errors from then on show their traceback.
    """

    def __init__(
        self,
        panel: Front,
        finish: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
        tick: Callable[[float], None] | None = None,
    ) -> None:
        self.stop = threading.Event()
        self.training = False
        self._panel, self._finish, self._settle, self._tick = panel, finish, settle, tick
        self._thread: threading.Thread | None = None
        self._working = threading.Lock()
        self._job = Job()
        self._job.ended.set()

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._working.locked()

    @property
    def error(self) -> BaseException | None:
        """What the last work raised, None if it ended well."""
        return self._job.error

    @property
    def refused(self) -> bool:
        """Whether the last work ended before training, by what a reader can put right."""
        return not self.training and isinstance(self.error, EXPECTED)

    @property
    def stopped(self) -> bool:
        """Whether work other than a drawing was asked to stop."""
        return self.stop.is_set() and not self._job.yields

    @property
    def inside(self) -> bool:
        """Whether the caller is the work itself."""
        return self.busy and threading.current_thread() is self._thread

    def start(self, work: Work, block: bool = False, *, yields: bool = False) -> None:
        """Starts `work` in the thread, and waits for it if asked to.

        Args:
            yields: the work is given up as soon as other work is to start, as a drawing is.

        Raises:
            Busy: other work is under way; it goes on, and `work` is forgotten, not queued.
            BaseException: with `block`, what the work raised.
        """
        if self.busy and self._job.yields and not self.inside:
            self.stop.set()
            self.join()
        if not self._working.acquire(blocking=False):
            raise Busy("Already running: wait for the end or press Stop first. Nothing was queued.")
        self.stop.clear()
        self.training, self._job = False, Job(yields)
        self._thread = threading.Thread(target=self._run, args=(work, self._job), name="workbench", daemon=True)
        release_threads()  # of a cell that trained before, or every step here would wait for them
        try:
            self._thread.start()
            if self._tick is not None:
                threading.Thread(target=self._beat, args=(self._job,), name="workbench clock", daemon=True).start()
            if block:
                self.wait()
        except KeyboardInterrupt:
            self.stop.set()
            self.join()
            raise

    def wait(self, timeout: float | None = None) -> None:
        """Waits until the work has ended, and raises what it raised. An interrupt (Ctrl-C) stops the work first.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds.
            KeyboardInterrupt: as it came, once the work has ended.
        """
        job = self._job
        try:
            ended = self.join(timeout)
        except KeyboardInterrupt:
            self.stop.set()
            self.join()
            raise
        if not ended:
            raise TimeoutError(f"still running after {timeout} s")
        if job.error is not None:
            raise job.error

    def join(self, timeout: float | None = None) -> bool:
        """Waits until all work has ended, however it ended; False if it has not after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self.inside:
            job = self._job
            if not job.ended.wait(None if until is None else max(0.0, until - time.monotonic())):
                return False
            if job is self._job:  # else its end began more work, such as a drawing that had to wait
                return True
        return True

    def patiently(self, call: Callable[[], Result]) -> Result:
        """The result of a call that cannot be stopped, such as reading files, in a thread of its own.

        Raises:
            InterruptedError: stopped meanwhile; the call goes on by itself, and its result is dropped.
            Exception: what the call raised.
        """
        done, found = threading.Event(), list[Any]()

        def work() -> None:
            try:
                found.append((call(), None))
            except BaseException as error:
                found.append((None, error))
            done.set()

        threading.Thread(target=work, name="workbench errand", daemon=True).start()
        while not done.wait(LOOK):
            if self.stop.is_set():
                raise InterruptedError
        result, error = found[0]
        if error is not None:
            raise error
        return result

    def press(self, action: Callable[[], Any]) -> None:
        """What a button does. Nothing escapes to where nobody would see it."""
        try:
            if not self.busy:
                self._panel.show_text("")
            action()
        except Exception as error:
            self.show(error, expected=isinstance(error, EXPECTED))

    def show(self, error: BaseException, expected: bool) -> None:
        """Shows an error's message, and its traceback unless the message says enough."""
        if expected:
            self._panel.say("warning" if isinstance(error, Busy) else "error", in_words(error))
        else:
            self._panel.say("error", f"{type(error).__name__}: {error}")
            self._panel.show_text("".join(traceback.format_exception(error)))

    def _beat(self, job: Job) -> None:
        began = time.perf_counter()
        while not job.ended.wait(TICK):
            if self._tick is not None:
                self._tick(time.perf_counter() - began)

    def _run(self, work: Work, job: Job) -> None:
        say = None
        try:
            try:
                say = work()
            except BaseException as error:  # kept for whoever waits: a thread has nobody to raise to
                job.error = error
            try:
                self._finish()
            except Exception as error:
                job.error = job.error or error
            if job.error is not None:
                self.show(job.error, expected=self.refused)
            elif say is not None:
                self._panel.say(*say)
        finally:
            self._working.release()
            try:
                self._settle()
            finally:
                trim()
                job.ended.set()


def trim() -> None:
    """Gives the system back what work has freed: a C library keeps some of it for every thread that has ended."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc needs this, and has it
        ctypes.CDLL(None).malloc_trim(0)
