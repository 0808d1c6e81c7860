"""Units, the runs that records are made of, and what a record is: `queue` makes them."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import history
from fedlab_core.check import checked
from fedlab_core.experiment import Experiment
from fedlab_core.local.work import Stopped
from fedlab_core.settings import Settings

Stop = Callable[[], bool]
Run = Callable[[Mapping[str, Any], Stop, str], dict[str, Any]]
"""Settings of a unit, whether to stop now (asked between rounds), device -> plain data; raises `Stopped` if so."""
Results = Mapping[str, Mapping[str, Any]]
"""By the key of the unit: its result."""


@checked
@dataclass(frozen=True)
class Unit:
    """One run.

    Attributes:
        arm: what is compared with what; a name for legends and tables.
        seed: of the run; searches for a learning rate have seeds of their own.
        settings: plain data, everything that decides the result.
    """

    arm: str
    seed: int
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A name for its file: readable, and another one for other settings."""
        plain = json.dumps([self.arm, self.seed, self.settings], sort_keys=True)
        arm = re.sub(r"[^A-Za-z0-9.]+", "-", self.arm).strip("-")
        return f"{arm}-seed{self.seed}-{hashlib.sha256(plain.encode()).hexdigest()[:10]}"


@checked
@dataclass(frozen=True)
class Record:
    """A picture in `figures/` and its data, made of units.

    Attributes:
        name: of the two files.
        title: of the picture.
        plan: from the results so far, the units of the record in the order in which they are to be made. A unit that
            depends on others, such as a run at the learning rate that a search found, is named as soon as they are
            there.
        run: makes one unit; a function of a module, since it is called in another process.
        draw: the picture, from the data that `queue.gathered` returns.
        seeds: of the record, without those of searches.
    """

    name: str
    title: str
    plan: Callable[[Results], Sequence[Unit]]
    run: Run
    draw: Callable[[Mapping[str, Any]], Figure]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


@checked
def sparse(experiment: Experiment) -> dict[str, Any]:
    """What an experiment changes of the defaults, plain data for the settings of a unit: a setting that is added to the
    package later leaves the keys of finished units as they are."""
    usual, plain = full({"settings": {}}).to_json(), experiment.to_json()
    settings = {name: value for name, value in plain.pop("settings").items() if value != usual["settings"][name]}
    return {name: value for name, value in plain.items() if value != usual[name]} | {"settings": settings}


@checked
def full(changes: Mapping[str, Any]) -> Experiment:
    """The inverse of `sparse`."""
    return Experiment(**{**changes, "settings": Settings(**{"engine": "loop", **changes["settings"]})})


@checked
def heeding(records: Iterable[history.Record], stop: Stop) -> Iterator[history.Record]:
    """The records of `Federation.rounds` as they come; `stop` is asked after every round.

    Raises:
        Stopped: it was asked to stop.
    """
    for record in records:
        if stop():
            raise Stopped(f"after round {record.round}")
        yield record
