"""What the campaign is tried on: a small run with everything that a run can hold, and how two runs are compared."""

from pathlib import Path
from typing import Any

import torch

from fedlab_core.data import Dataset
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import build_method
from fedlab_core.models import build_model
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings

ROUNDS = 8


def small_data(n: int = 60) -> Dataset:
    """Random 1x4x4 images of three classes."""
    draws = generator(0, "small data")
    y = torch.randint(3, (n,), generator=draws)
    x = (torch.randint(0, 100, (n, 1, 4, 4), generator=draws) + 50 * y[:, None, None, None]).to(torch.uint8)
    return Dataset("small", "image", x, y, x[:20], y[:20], ("a", "b", "c"), (0.4,), (0.2,))


def small_partition() -> Partition:
    """Four clients of 15 examples."""
    return Partition(torch.arange(60), torch.arange(0, 61, 15), "blocks of 15")


def small_model(norm: str = "batch") -> torch.nn.Module:
    """A perceptron with batch norm, so that clients keep something of their own."""
    return build_model("mlp", (1, 4, 4), 3, generator(0, "initial weights"), norm=norm, hidden=(6,))


def small_run(engine: str = "loop", *, method: FedAvg | None = None, norm: str = "batch", **changes: Any) -> Federation:
    """Sampling, server and client memories, local statistics; or with another method and other settings."""
    usual = {"fraction": 0.5, "batch_size": 4, "lr": 0.1, "batch_norm": "local", "engine": engine}
    settings = Settings(**{**usual, **changes})
    return Federation(small_data(), small_partition(), small_model(norm), settings, method or build_method("scaffold"))


def load(folder: Path) -> Federation:
    """The run that a folder holds."""
    return Federation.load(folder, small_data(), small_partition(), small_model())


def run_on(folder: Path, rounds: int = ROUNDS, engine: str = "loop", note: Path | None = None) -> None:
    """Begin a run in a folder, or take up what is there, and go on to a round, saving after each.

    Args:
        note: a file that takes up the number of every round that is handed over, and so has been saved.
    """
    federation = load(folder) if (folder / "run.json").exists() else small_run(engine)
    for record in federation.rounds(rounds - federation.round, checkpoint=folder):
        if note is not None:
            with note.open("a") as stream:
                stream.write(f"{record.round}\n")


def noted(note: Path) -> int | None:
    """The last round that `run_on` noted as saved; None before there was one."""
    whole = note.read_text().rpartition("\n")[0] if note.exists() else ""  # a kill may leave half a line
    return int(whole.split()[-1]) if whole else None


def same(a: Federation, b: Federation) -> bool:
    """The same records and the same bits, of clients too, after the same whole rounds."""
    if a.history != b.history or a.round != b.round or len(a.history) != a.round + 1:
        return False
    pairs = [(a.state, b.state), *((a.client_state(c), b.client_state(c)) for c in range(len(a.partition)))]
    return all(list(one) == list(two) and all(torch.equal(one[n], two[n]) for n in one) for one, two in pairs)
