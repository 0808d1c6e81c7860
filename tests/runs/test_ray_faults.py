"""Ray: reached from this machine only, with a token; gone with its driver; an address that is silent is named."""

import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from fedlab_core.engines import get_engine
from fedlab_core.engines import ray as engine

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedlab_core[ray]'")

DRIVER = """
import sys
from fedlab_core.engines.ray import connect
connect()
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
JOIN = "import sys, ray; ray.init(sys.argv[1], logging_level='critical'); print('joined')"


@pytest.fixture(scope="module")
def driver() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that has started a cluster, and its address."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": clean}
    process = subprocess.Popen([sys.executable, "-c", DRIVER], **pipes)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


def test_a_cluster_started_here_listens_on_loopback_only(driver: tuple[subprocess.Popen[str], str]) -> None:
    process, address = driver
    assert address.startswith("127.0.0.1:")
    heard = [
        one.laddr.ip
        for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in child.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    ]
    assert heard and all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip in heard), heard


def test_a_process_without_the_token_is_turned_away(driver: tuple[subprocess.Popen[str], str]) -> None:
    process, address = driver
    known = psutil.Process(process.pid).environ()
    assert "RAY_AUTH_TOKEN" not in known  # it is not on show in what the process was started with
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    try:
        joined = subprocess.run(
            [sys.executable, "-c", JOIN, address], env=clean, capture_output=True, text=True, timeout=15
        )
        assert joined.returncode and "joined" not in joined.stdout
    except subprocess.TimeoutExpired as error:  # it goes on asking
        assert "joined" not in (error.stdout or b"").decode()


def test_a_driver_that_dies_leaves_no_process_behind(driver: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = driver
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in children)
    process.kill()
    process.wait()
    gone, left = psutil.wait_procs(children, timeout=120)  # left as soon as they are gone
    assert len(gone) == len(children) and not left


@pytest.mark.parametrize("listening", [False, True])
def test_an_address_that_does_not_answer_is_named_within_20_seconds(listening: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=f"address='{address}': no cluster of Ray answers"):
            engine.connect(address)
        assert time.monotonic() - began < 20  # Ray itself asks for minutes


@pytest.mark.parametrize("address", ["nonsense", "host", "10.0.0.1:port", ":6379", "http://10.0.0.1:6379"])
def test_what_is_no_address_is_refused_when_the_engine_is_made(address: str) -> None:
    with pytest.raises(ValueError, match="address=.*accepted: 'auto', HOST:PORT"):
        get_engine(f"ray:{address}")


@pytest.mark.parametrize("failing", [1, 2])
def test_a_start_that_fails_is_tried_once_more_and_then_named(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tries = []

    def init(*_: object, **__: object) -> None:
        tries.append(1)
        if len(tries) <= failing:
            raise Exception("The current node timed out during startup.")

    engine.disconnect()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    if failing == 1:
        engine.connect()
    else:
        with pytest.raises(ConnectionError, match="engine='ray'.*timed out"):
            engine.connect()
    assert len(tries) == 2
    monkeypatch.undo()
    engine.disconnect()
