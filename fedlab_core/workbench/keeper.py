"""Keeping a panel's runs on disk: where they are, what could not be kept, and which earlier ones there are."""

import html
from collections.abc import Sequence
from pathlib import Path

from fedlab_core import files
from fedlab_core.workbench import store
from fedlab_core.workbench.panel import Panel
from fedlab_core.workbench.runs import Run

LISTED = 12  # earlier panels in the menu


class Keeper:
    """Keeps a panel's runs.

    Args:
        panel: shows where they are.
        keep: whether, or in which folder.
    """

    def __init__(self, panel: Panel, keep: bool | str | Path) -> None:
        self._panel, self._store = panel, None
        if keep:
            folder = store.new_folder() if keep is True else files.expanded("keep", keep).absolute()
            self._store = store.Store(folder)
        self._list()

    @property
    def folder(self) -> Path | None:
        """Where the runs are."""
        return None if self._store is None else self._store.folder

    def keep(self, runs: Sequence[Run], run: Run, last: bool) -> None:
        """Saves a run if it is time, and always if `last`; what cannot be saved is said, and the run goes on."""
        if self._store is None:
            return
        try:
            self._store.keep(runs, run, last=last)
            said = f"Runs are kept in {self._store.folder}"
        except Exception as error:
            said = f"⚠ {run.name} is not kept on disk: {error}"
        self._panel.place.value = f"<div class='fedlab-note'>{html.escape(said)}</div>"

    def renew(self) -> None:
        """Further runs go into a folder of their own; what is kept stays."""
        if self._store is not None:
            self._store.leave()
            self._store = store.Store(store.new_folder(self._store.folder.parent))
        self._list()

    def leave(self) -> None:
        """What is kept is in use no more."""
        if self._store is not None:
            self._store.leave()

    def _list(self) -> None:
        home = None if self.folder is None else self.folder.parent
        folders = [folder for folder in store.earlier(home) if folder != self.folder][:LISTED]
        self._panel.earlier.options = [(store.title(folder), str(folder)) for folder in folders]
        if folders:
            self._panel.earlier.value = str(folders[0])
        self._panel.earlier.layout.display = self._panel.open.layout.display = "" if folders else "none"
