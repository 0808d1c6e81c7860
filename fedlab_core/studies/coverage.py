"""`docs/coverage.md`: every statement of the five papers' abstracts and what became of it; `make claims` writes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab_core import files
from fedlab_core.check import checked
from fedlab_core.studies.record import FIGURES, recorded

FILE = FIGURES.parent / "docs" / "coverage.md"


@checked
@dataclass(frozen=True)
class Statement:
    """A statement of an abstract.

    Attributes:
        said: in our words; no sentence is quoted.
        claims: ids of the claims that test it; one that ends in "*" stands for all that begin so.
        pictures: names in `figures/`.
        note: why it is left open, or what to keep in mind.
    """

    said: str
    claims: tuple[str, ...]
    pictures: tuple[str, ...] = ()
    note: str = ""


FEDAVG = (
    Statement(
        "One model can be learnt from data that stay on the devices, by averaging what they trained locally.",
        ("fedavg.figure_one", "fedavg.rounds_iid"),
        ("fedavg_tables",),
    ),
    Statement(
        "It is robust to unbalanced data and data that are not identically distributed.",
        ("fedavg.rounds_shards", "fedavg.more_work_shards"),
        ("fedavg_tables",),
        "two shards a client; the paper gives no numbers for unbalanced MNIST",
    ),
    Statement(
        "Communication is what costs most; it takes 10 to 100 times fewer rounds than synchronised SGD.",
        ("fedavg.speed_up", "fedavg.rounds", "fedavg.text", "fedavg.shakespeare", "fedavg.bytes"),
        ("fedavg_tables", "fedavg_text"),
    ),
    Statement(
        "It was evaluated on five architectures and four data sets.",
        ("fedavg.rounds_*", "fedavg.one_client", "fedavg.more_work*", "fedavg.fedsgd*"),
        ("fedavg_tables", "fedavg_text"),
        "here the 2NN at the paper's size and a small LSTM; the CNNs and the word LSTM were not run at their size",
    ),
)
BATCHNORM = (
    Statement(
        "Clients' and global statistics differ on non-IID data, and that makes the gradients of clients deviate.",
        ("batchnorm.identity", "batchnorm.gradients", "batchnorm.gradients_cnn"),
        ("batchnorm_mnist_cnn",),
    ),
    Statement(
        "So FedAvg with batch normalisation converges more slowly and to a biased point.",
        ("batchnorm.no_noise", "batchnorm.no_noise_mnist", "batchnorm.digits", "batchnorm.controls"),
        ("batchnorm_no_noise", "batchnorm_mnist_one_digit", "batchnorm_mnist_iid"),
    ),
    Statement(
        "FedTAN, which aggregates the statistics layer by layer, takes the deviation away.",
        ("batchnorm.identity", "batchnorm.exchanges"),
        ("batchnorm_mnist_five_steps",),
        "exact for one local step; beyond it, see the picture",
    ),
    Statement(
        "In experiments it trains markedly better on non-IID data.",
        ("batchnorm.mnist", "batchnorm.cifar", "batchnorm.cifar_*"),
        ("batchnorm_mnist", "batchnorm_cifar"),
    ),
)
PRETRAINING = (
    Statement(
        "Pre-training improves federated learning and closes the gap to centralised training, above all for non-IID "
        "clients.",
        ("pretraining.imagenet_gap", "pretraining.gap", "pretraining.mnist", "pretraining.cifar10"),
        ("pretraining_imagenet", "pretraining", "pretraining_standard"),
        "ImageNet's features distilled into a ResNet-8; the smaller starts are letters and Caltech-101",
    ),
    Statement(
        "Synthetic data do without any real images.",
        ("pretraining.synthetic", "pretraining.mnist_fractals"),
        ("pretraining", "pretraining_standard"),
        "3,000 to 4,096 pairs here, a million in the released script",
    ),
    Statement(
        "So does pre-training on the clients' own data, without gathering them.",
        ("pretraining.decentralised",),
        ("pretraining",),
    ),
    Statement("The ways add up with one another and with better methods.", ("pretraining.methods",), ("pretraining",)),
    Statement(
        "Pre-training seems not to take away the drift of local models.",
        ("pretraining.imagenet_drift", "pretraining.imagenet_direction", "pretraining.drift"),
        ("pretraining_imagenet", "pretraining"),
        "depends on the measure: smaller relative to the weights, no better aligned",
    ),
    Statement(
        "With it, global models learnt under different conditions of the clients' data end in one loss basin.",
        ("pretraining.imagenet_basin", "pretraining.basin", "pretraining.mnist_basin", "pretraining.cifar10_basin"),
        ("pretraining_imagenet", "pretraining", "pretraining_standard"),
    ),
    Statement(
        "With it, global aggregation is more stable.",
        (
            "pretraining.imagenet_stability",
            "pretraining.stability",
            "pretraining.mnist_stability",
            "pretraining.cifar10_stability",
        ),
        ("pretraining_imagenet", "pretraining", "pretraining_standard"),
    ),
)  # fmt: skip
FINETUNING = (
    Statement(
        "Fine-tuned Transformers do very well in federated learning; tuning a part converges fast and sends little.",
        ("finetuning.payload", "finetuning.targets", "finetuning.memory", "finetuning.caltech_cifar"),
        ("finetuning_strength", "finetuning_caltech_cifar"),
    ),
    Statement(
        "Where the pre-trained model is strong, tuning its biases is best.",
        ("finetuning.strength", "finetuning.paper"),
        ("finetuning_strength",),
        "a ViT of four blocks; the paper's networks need a GPU",
    ),
    Statement(
        "CLIP is above ViT, and holds up better with few pictures.",
        ("finetuning.clip", "finetuning.paper"),
        ("finetuning_clip",),
        "CLIP-tiny has seen twenty thousand generated pictures, CLIP hundreds of millions",
    ),
    Statement(
        "Training together beats training alone, because the clients over-fit less.",
        ("finetuning.local",),
        ("finetuning_local",),
    ),
)
LAYERWISE = (
    Statement(
        "Clients can train one layer at a time without labels, and need five times less memory or better.",
        ("layerwise.memory", "layerwise.oracles", "layerwise.frozen"),
    ),
    Statement(
        "What is learnt serves downstream tasks about as well as end-to-end training.",
        ("layerwise.accuracy", "layerwise.cifar10", "layerwise.caltech101"),
        ("layerwise_digits", "layerwise_cifar10", "layerwise_caltech101"),
        "six blocks, 4,000 pictures; memory and accuracy are not yet compared on one network of twelve",
    ),
    Statement(
        "Dropping frozen layers at random saves more at little loss.",
        ("layerwise.dropout", "layerwise.dropout_accuracy"),
        ("layerwise_dropout",),
        "it saves computation; of what is kept for the backward pass it saves nothing",
    ),
)
PAPERS: Mapping[str, Sequence[Statement]] = {
    "McMahan et al., Communication-efficient learning of deep networks (arXiv 1602.05629)": FEDAVG,
    "Wang, Shi and Chang, Why batch normalization damages federated learning (arXiv 2301.02982)": BATCHNORM,
    "Chen et al., On the importance and applicability of pre-training (arXiv 2206.11488)": PRETRAINING,
    "Chen et al., FedTune (arXiv 2211.08025)": FINETUNING,
    "Guo et al., Federated layer-wise learning and depth dropout (arXiv 2309.05213)": LAYERWISE,
}


@checked
def chosen(statement: Statement, rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that test a statement.

    Raises:
        ValueError: a claim of the statement is not there.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for name in statement.claims:
        ids = [key for key in rows if key.startswith(name[:-1])] if name.endswith("*") else [name]
        if not ids or any(key not in rows for key in ids):
            raise ValueError(f"{name!r} is no claim of figures/claims.json")
        found |= {key: rows[key] for key in ids}
    return list(found.values())


@checked
def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page from the rows of `figures/claims.json`.

    Raises:
        ValueError: a statement names a claim that is not there.
    """
    by_id = {row["id"]: row for row in rows}
    lines = [
        "# What became of the five abstracts",
        "",
        "Computed by `make claims` from [`figures/claims.json`](../figures/claims.json). Statements are in our words. "
        "A claim is *shown* if the 95 % interval of its headline lies inside the expected range, *refuted* if it lies "
        "outside, *undecided* otherwise; exact identities and counts have no interval.",
    ]
    for paper, statements in PAPERS.items():
        lines += ["", f"## {paper}", ""]
        heads = ("the abstract says (our words)", "claim", "verdict", "measured", "expected", "pictures")
        lines += [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        for statement in statements:
            said = statement.said + (f" *({statement.note})*" if statement.note else "")
            pictures = ", ".join(f"[{name}](../figures/{name}.png)" for name in statement.pictures)
            for number, row in enumerate(chosen(statement, by_id)):
                ends = "" if number else said, "" if number else pictures
                lines.append(f"| {ends[0]} | {' | '.join(_cells(row))} | {ends[1]} |")
    return "\n".join(lines) + "\n"


@checked
def write(file: Path = FILE) -> None:
    """Writes the page."""
    file.parent.mkdir(exist_ok=True)
    files.write(file, page(recorded("claims") or []).encode())


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    part = row["headline"] or (row["failed"] or list(row["expected"]))[0]
    value, ends = row["measured"].get(part), row["interval"]
    measured = "-" if value is None else f"{value}" + (f" [{ends[0]}, {ends[1]}]" if ends else "")
    more = "" if row["headline"] or len(row["expected"]) == 1 else f", and {len(row['expected']) - 1} more"
    return f"`{row['id']}`", f"**{row['verdict']}**", measured, f"{part} {row['expected'][part]}{more}"
