"""One thread at a time for everything that takes long, so that buttons answer while rounds run."""

import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol


class Voice(Protocol):
    """Where a reader sees what happens: a status line, and a place for longer texts."""

    def say(self, kind: str, text: str) -> None:
        """Sets the status line."""

    def show_text(self, text: str) -> None:
        """Shows a text such as a traceback; an empty one takes it away."""


class Busy(RuntimeError):
    """Work is under way and a second piece was refused."""


Work = Callable[[], tuple[str, str] | None]
"""What the thread does; it may return what the status line says once all is done, as `Panel.say` takes it."""
EXPECTED = (ValueError, FileNotFoundError, Busy)  # before training: a reader's slip, so the message says enough


class Worker:
    """Runs one piece of work at a time in a daemon thread; whatever goes wrong is shown in the panel.

    Args:
        panel: shows messages and tracebacks.
        finish: called in the thread at the end of all work.

    Attributes:
        stop: set to ask the work to end; cleared when new work starts.
        error: what the last work raised, None if it ended well.
        training: set by the work once its settings have been accepted: errors from then on show their traceback.
    """

    def __init__(self, panel: Voice, finish: Callable[[], None]) -> None:
        self.stop = threading.Event()
        self.error: Exception | None = None
        self.training = False
        self._panel, self._finish = panel, finish
        self._thread: threading.Thread | None = None
        self._working = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._working.locked()

    @property
    def inside(self) -> bool:
        """Whether the caller is the work itself."""
        return threading.current_thread() is self._thread

    def start(self, work: Work, block: bool = False) -> None:
        """Starts `work` in the thread, and waits for it if asked to.

        Raises:
            Busy: other work is under way; it goes on, and `work` is forgotten, not queued.
            Exception: with `block`, what the work raised.
        """
        if not self._working.acquire(blocking=False):
            raise Busy("Already running: wait for the end or press Stop first. Nothing was queued.")
        self.stop.clear()
        self.error, self.training = None, False
        self._thread = threading.Thread(target=self._run, args=(work,), name="workbench", daemon=True)
        self._thread.start()
        if block:
            self.wait()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until the work has ended, and raises what it raised.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds.
        """
        if not self.join(timeout):
            raise TimeoutError(f"still running after {timeout} s")
        if self.error is not None:
            raise self.error

    def join(self, timeout: float | None = None) -> bool:
        """Waits until the work has ended, however it ended; False if it has not after `timeout` seconds."""
        if self._thread is None or self.inside:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def press(self, action: Callable[[], Any]) -> None:
        """What a button does. Nothing escapes to where nobody would see it."""
        try:
            if not self.busy:
                self._panel.show_text("")
            action()
        except Exception as error:
            self.show(error, expected=isinstance(error, EXPECTED))

    def show(self, error: Exception, expected: bool) -> None:
        """Shows an error's message, and its traceback unless the message says enough."""
        if expected:
            self._panel.say("warning" if isinstance(error, Busy) else "error", str(error))
        else:
            self._panel.say("error", f"{type(error).__name__}: {error}")
            self._panel.show_text("".join(traceback.format_exception(error)))

    def _run(self, work: Work) -> None:
        try:
            say = None
            try:
                say = work()
            except Exception as error:  # kept for whoever waits: a thread has nobody to raise to
                self.error = error
            try:
                self._finish()
            except Exception as error:
                self.error = self.error or error
            if self.error is not None:
                self.show(self.error, expected=not self.training and isinstance(self.error, EXPECTED))
            elif say is not None:  # said last, so that whoever reads it finds the thread free
                self._panel.say(*say)
        finally:
            self._working.release()
