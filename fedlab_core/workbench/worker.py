"""One thread at a time for everything that takes long, so that buttons answer while rounds run."""

import threading
from collections.abc import Callable


class Busy(RuntimeError):
    """Work is under way and a second piece was refused."""


class Worker:
    """Runs one piece of work at a time in a daemon thread.

    Attributes:
        stop: set to ask the work to end; cleared when new work starts.
        error: what the last work raised, None if it ended well.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._busy = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._busy.locked()

    @property
    def inside(self) -> bool:
        """Whether the caller is the work itself."""
        return threading.current_thread() is self._thread

    def start(self, work: Callable[[], None], name: str = "workbench") -> None:
        """Starts `work` in the thread.

        Raises:
            Busy: other work is under way; it goes on, and `work` is forgotten, not queued.
        """
        if not self._busy.acquire(blocking=False):
            raise Busy("Already running: wait for the last round or press Stop. Nothing was queued.")
        self.stop.clear()
        self.error = None

        def run() -> None:
            try:
                work()
            except BaseException as error:  # kept for whoever waits; a thread has nobody to raise to
                self.error = error
            finally:
                self._busy.release()

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the work has ended; False if it has not after `timeout` seconds."""
        if self._thread is not None and not self.inside:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True
