"""Notebooks are checked in the environment they were executed in: quick size, one thread, no data root, no network."""

from collections.abc import Generator

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from tools.execute_notebooks import reader_environment


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
