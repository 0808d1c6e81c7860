"""Notebooks are checked in the environment they were executed in: quick size, one thread, no data root, no network."""

import functools
from collections.abc import Callable, Generator
from typing import Any

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from tools.execute_notebooks import as_saved, has_tag, reader_environment


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What goes to stderr (warnings of libraries) is not saved, so it is not compared."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """The kernel starts with the first cell of a notebook and inherits what the environment is then."""
    if not isinstance(item, IPyNbCell):
        return (yield)
    with reader_environment():
        return (yield)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A cell tagged `trained` prints numbers that come of training: its fractions are compared with a tolerance."""
    if isinstance(item, IPyNbCell) and has_tag(item.cell, "trained"):
        item.compare_outputs = functools.partial(compare_trained, item.compare_outputs)


def compare_trained(compare: Callable[..., bool], printed: list[Any], saved: list[Any], *more: Any) -> bool:
    """nbval's comparison, after fractions that are near the saved ones were taken for them."""
    for new, old in zip(printed, saved, strict=False):
        for holder, known in ((new, old), (new.get("data", {}), old.get("data", {}))):
            for key in ("text", "text/plain", "text/html"):
                if isinstance(holder.get(key), str) and isinstance(known.get(key), str):
                    holder[key] = as_saved(known[key], holder[key])
    return compare(printed, saved, *more)
