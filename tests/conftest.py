"""Shared by all tests: real data where there is some, and no network."""

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

from fedlab_core import registry
from fedlab_core.data import Dataset, data_root, dataset_names, load_dataset, missing_data

# Nothing that a busy machine could fail: no limit on the time of an example or of its making.
settings.register_profile("fedlab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedlab")

LONGEST = (
    "tests/browser/test_book_pages.py",
    "tests/workbench/test_choices.py",
    "tests/browser/test_panel.py",
    "tests/browser/test_path.py",
    "tests/engines/test_ray.py",
    "tests/runs/test_campaign.py",
    "tests/runs/test_checkpoint.py",
    "tests/runs/test_ray_faults.py",
    "notebooks/08_why_the_gap.ipynb",
    "tests/studies/test_queue.py",
    "notebooks/solutions/08_why_the_gap.ipynb",
)
"""Files that take a minute or more, the longest first; then come notebooks, then the rest."""
NEED_FILES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "shakespeare", "caltech101")
OWN = {address.address for found in psutil.net_if_addrs().values() for address in found}
LOCAL = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", None, *OWN}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is left with it when the others are done."""

    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST) + (not file.startswith("notebooks/"))

    items.sort(key=place)
    for item in items:
        if place(item) < len(LONGEST):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The data root, if any data set that has to be put there is; else the test is skipped."""
    assert set(NEED_FILES) <= set(dataset_names())
    root = data_root()
    if all(missing_data(name, root) for name in NEED_FILES):
        pytest.skip(f"no data set in {root}: set FEDLAB_DATA, see data/README.md")
    return root


@pytest.fixture(scope="session")
def load_real(real_data: Path) -> Callable[..., Dataset]:
    """`load_dataset` from the data root; a test that asks for a data set which is not there is skipped."""

    def load(name: str, **options: Any) -> Dataset:
        if sentence := missing_data(name, real_data):
            pytest.skip(sentence)
        return load_dataset(name, real_data, **options)

    return load


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts a test as it does a program: Playwright takes it for itself as long as a browser is open."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Names are not looked up and connections not made, but to this machine."""
    lookup, connect = socket.getaddrinfo, socket.socket.connect

    def local_lookup(host: Any, *rest: Any, **options: Any) -> Any:
        if (host.decode() if isinstance(host, bytes) else host) not in LOCAL:
            raise OSError(f"no network in tests: {host}")
        return lookup(host, *rest, **options)

    def local_connect(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in LOCAL:
            raise OSError(f"no network in tests: {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local_lookup)
        patch.setattr(socket.socket, "connect", local_connect)
        yield


@pytest.fixture(autouse=True)
def names_as_they_were() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    tables = [*registry.TABLES.values(), registry.OWN]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        if table != entries:
            table.clear()
            table.update(entries)
