"""`python -m fedlab_core.studies NAME ...`: makes records of `figures/` again, each a NAME.png and its NAME.json.

Finished runs are kept in `runs/`, so that a recording that was killed goes on where it was. `records` in place of a
name works off the queue of `studies.queue`: `records --help` tells its options.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fedlab_core.studies import (
    attribution,
    batchnorm_distributions,
    batchnorm_exact,
    batchnorm_runs,
    fedavg_rounds,
    fedavg_tables,
    fedavg_text,
    finetuning_runs,
    layerwise_runs,
    pretraining_imagenet,
    pretraining_runs,
    queue,
)

QUEUE = (
    *(pretraining_imagenet.RECORD, fedavg_tables.RECORD, batchnorm_distributions.RECORD, *attribution.RECORDS),
    *(study.record for module in (batchnorm_runs, finetuning_runs, layerwise_runs) for study in module.COMPARISONS),
    *(batchnorm_exact.NO_NOISE, fedavg_rounds.STUDY.record, fedavg_text.RECORD),
    *(pretraining_runs.STUDY.record, pretraining_runs.STANDARD.record),
)
"""Records that are made of units, in the order in which `make records` works them off."""
RECORDS: dict[str, Callable[[], Any]] = {
    **{record.name: partial(queue.work_off, [record]) for record in QUEUE},
}
"""By the name of the files: what writes them."""


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["records"]:
        return queue.main(QUEUE, arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m fedlab_core.studies", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=list(RECORDS), metavar="NAME", help=", ".join(RECORDS))
    parser.add_argument("--device", help="a torch device such as cuda, for the batch-norm study")
    options = parser.parse_args(arguments)
    if options.device and not all(name.startswith("batchnorm") for name in options.names):
        parser.error("--device: only the batch-norm study takes one")
    torch.set_num_threads(1)
    for name in options.names:
        began = time.perf_counter()
        RECORDS[name](**{"device": options.device} if options.device else {})
        print(f"figures/{name}.png, {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
