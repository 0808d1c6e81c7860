"""FedAvg (McMahan et al. 2017): the line between two models, bytes, and the claims of the first notebook."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from fedlab_core import probes
from fedlab_core.costs import serialise, serialised_tensor_bytes
from fedlab_core.data import Dataset, load_dataset
from fedlab_core.federation import Federation
from fedlab_core.models import build_model, parameter_count
from fedlab_core.partition import Partition, iid
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State
from fedlab_core.studies import fedavg_tables, fedavg_text, resume
from fedlab_core.studies.arms import by_arm, rates
from fedlab_core.studies.claim import Claim, Measured, Range, exact, headlined
from fedlab_core.studies.fedavg_rounds import WORK, Rounds, rounds_table, speed_ups
from fedlab_core.studies.record import recorded

SET = "6897499, before the record"
CHOSEN = f"{SET}; its one headline was picked with the record known"


def figure_one(
    pairs: int = 5,
    examples: int = 600,
    epochs: int = 20,
    batch_size: int = 50,
    lr: float = 0.1,
) -> dict[str, list[probes.LossLine]]:
    """Loss on all of digits along the line between two models (figure 1 of the paper, with its recipe).

    The two 2NN of a pair are trained on disjoint IID halves of 2 x `examples` training examples, from "independent"
    or from "shared" initial weights. The last model of the independent pair is the only one that differs.

    Returns:
        One line per pair and kind of start; theta = 1 is the model that both kinds have in common.
    """
    dataset = load_dataset("digits")
    lines: dict[str, list[probes.LossLine]] = {"independent": [], "shared": []}
    for pair in range(pairs):
        halves = torch.randperm(len(dataset.x), generator=generator(pair, "figure 1"))[: 2 * examples].split(examples)

        def parent(half: int, start: int, pair: int = pair, halves: tuple = halves) -> tuple[Federation, State]:
            model = build_model(
                "2nn", dataset.input_shape, dataset.num_classes, generator(pair, "initial weights", start)
            )
            holder = Partition(halves[half], torch.tensor([0, examples]), "one client")
            settings = Settings(1.0, epochs, batch_size=batch_size, lr=lr, seed=2 * pair + half, engine="loop")
            federation = Federation(dataset, holder, model, settings)
            for _ in federation.rounds(1):
                pass
            return federation, federation.state

        federation, first = parent(0, 0)
        lines["independent"].append(probes.line(federation, first, parent(1, 1)[1]))
        lines["shared"].append(probes.line(federation, first, parent(1, 0)[1]))
    return lines


def count_bytes(clients: int = 5) -> dict[str, int]:
    """Bytes of one FedAvg round of the 2NN on images of MNIST's shape (random pixels: bytes do not depend on them).

    Returns:
        Parameters of the model, bytes as the run counts them, and bytes of tensors in the serialised messages.
    """
    draws, n = generator(0, "random images"), 10 * clients
    x = torch.randint(0, 256, (n, 1, 28, 28), generator=draws).to(torch.uint8)
    y = torch.arange(n) % 10
    data = Dataset("random images", "image", x, y, x, y, tuple("0123456789"), (0.5,), (0.3,))
    model = build_model("2nn", data.input_shape, 10, generator(0, "initial weights"))
    federation = Federation(data, iid(n, clients, draws), model, Settings(fraction=1.0, engine="loop")).run(1)
    inside = federation.inside(1)
    messages = [inside.sent] * clients + [update.state for update in inside.updates]
    return {
        "parameters": parameter_count(model),
        "counted": federation.history[1].costs.bytes,
        "serialised": sum(serialised_tensor_bytes(serialise(message)) for message in messages),
    }


def rounds_claim(cells: Rounds | None = None) -> Claim:
    """Row 1: FedAvg needs fewer rounds than FedSGD on digits."""
    name = "E=5, B=10"
    cells = rounds_table({key: WORK[key] for key in ("FedSGD", name)}) if cells is None else cells
    measured: dict[str, Measured] = {}
    for partition, label in (("iid", "IID"), ("shards", "2 shards")):
        measured[f"{label}: times fewer rounds"] = speed_ups(cells, name, partition)
        for work in ("FedSGD", name):
            cell = cells[work, partition]
            edge = ", at the edge of the grid" if cell.at_edge else ""
            measured[f"{label}: {work} at lr {cell.lr}{edge}"] = list(cell.per_seed) or math.inf
    grid, seeds = cells[name, "iid"].grid, cells[name, "iid"].seeds
    return headlined(
        "fedavg.rounds",
        f"Digits, 20 clients, C=0.25, 93 % test accuracy, best lr of {', '.join(map(str, grid))}: "
        f"FedAvg ({name}) needs fewer rounds than FedSGD",
        Range(low=8),
        measured,
        source="ours; McMahan et al. 2017, tables 2 and 4: 3 to 46 times on IID MNIST, 0.5 to 3.7 times on 2 shards",
        size="quick",
        seeds=seeds,
        registered=CHOSEN,
        test_size=360,
    )


def figure_one_claim(lines: Mapping[str, Sequence[probes.LossLine]] | None = None) -> Claim:
    """Row 2: the midpoint is bad between independent starts and good between shared ones."""
    lines = figure_one() if lines is None else lines
    return headlined(
        "fedavg.figure_one",
        f"Digits, {len(lines['shared'])} pairs of 2NN with 600 examples each: averaging independent starts ruins both "
        "models, averaging a shared start does not",
        Range(low=0.5),
        {
            "independent: midpoint above the worse parent": [
                line.midpoint - max(line.parents) for line in lines["independent"]
            ],
            "shared: midpoint above the better parent": [line.midpoint - min(line.parents) for line in lines["shared"]],
        },
        source="McMahan et al. 2017, figure 1 (MNIST, one pair: about 0.45 to 1.25, and 0.46 to 0.40, read off)",
        size="quick",
        seeds=range(len(lines["shared"])),
        registered=CHOSEN.replace(";", ", of the least pair;"),
    )


def mnist_claim() -> Claim:
    """Row 4: rounds on MNIST, from the recorded run."""
    data = recorded("fedavg_mnist")
    lrs = rates(data)
    found = {arm: [one["reached"] for one in runs] for arm, runs in by_arm(data).items()}
    measured: dict[str, Measured] = {"rounds, IID": found.get("iid: E=1, B=10")}
    measured["rounds, 2 shards"] = found.get("shards: E=1, B=10")
    for arm, rounds in found.items():
        partition, _, name = arm.partition(": ")
        measured |= {f"{name}, {partition}: rounds": rounds, f"{name}, {partition}: best lr": lrs[arm]}
    return headlined(
        "fedavg.mnist",
        "MNIST, standardised pixels, 2NN, 100 clients, C=0.1, E=1, B=10, best lr of a grid: rounds to 97 % as in the "
        "paper, within 25 %",
        Range(0.75 * 87, 1.25 * 92),
        measured,
        source="McMahan et al. 2017, tables 1 and 4: 87 and 92 rounds IID, 664 and 831 on 2 shards",
        size="standard",
        seeds=(0, 1, 2) if found else (),
        registered=CHOSEN,
        test_size=10_000,
    )


def resume_claim() -> Claim:
    """Row 5: a killed run resumes, and a rewound run repeats, to the same bits."""
    return exact(
        "fedavg.resume",
        "Digits, 2NN: a run killed at a random moment and resumed, and a run rewound and run again, end in the bits of "
        "the uninterrupted one",
        {
            "equal after a kill, of 20 runs": (resume.killed(20), Range(20, 20)),
            "equal after rewinding, of 20": (resume.rewound(20), Range(20, 20)),
        },
        source="ours",
        size="quick",
        seeds=(0,),
        registered=SET,
    )


def bytes_claim() -> Claim:
    """Row 6: bytes counted are bytes sent."""
    clients = 5
    expected = 2 * 4 * 199_210 * clients
    limits = {"parameters": 199_210, "counted": expected, "serialised": expected}
    return exact(
        "fedavg.bytes",
        f"2NN on 28x28 images, {clients} clients: a round moves 2 x 4 bytes x 199,210 parameters x clients",
        {part: (found, Range(limits[part], limits[part])) for part, found in count_bytes(clients).items()},
        source="McMahan et al. 2017, section 3 (parameters)",
        size="quick",
        seeds=(0,),
        registered=SET,
    )


def first_run_claim() -> Claim:
    """Row 7: from a bare environment to the first finished round in a browser, as `tools/first_run.py` measures it."""
    record = recorded("first_run") or {}
    return exact(
        "fedavg.first_run",
        "A copy of the repository on a bare environment: from `make lab` to the first finished round in the browser",
        {"minutes": (record.get("minutes"), Range(high=10)), "actions": (record.get("actions"), Range(high=4))},
        source="ours",
        size="standard",
        registered="5d50e96, before the record",
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    "fedavg.rounds": rounds_claim,
    "fedavg.figure_one": figure_one_claim,
    "fedavg.text": fedavg_text.claim,
    "fedavg.shakespeare": fedavg_text.shakespeare_claim,
    "fedavg.mnist": mnist_claim,
    **fedavg_tables.CLAIMS,
    "fedavg.resume": resume_claim,
    "fedavg.bytes": bytes_claim,
    "fedavg.first_run": first_run_claim,
}
