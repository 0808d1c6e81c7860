"""`python -m fedlab_core.studies records [NAME ...]`: makes what is missing in the records, see `queue`."""

import sys

from fedlab_core.studies import (
    attribution,
    batchnorm_distributions,
    batchnorm_exact,
    batchnorm_runs,
    failing,
    fedavg_rounds,
    fedavg_tables,
    fedavg_text,
    finetuning_runs,
    layerwise_runs,
    pretraining_imagenet,
    pretraining_runs,
    pretraining_standard,
    queue,
)

QUEUE = (
    failing.RECORD,
    *(pretraining_imagenet.RECORD, fedavg_tables.RECORD, batchnorm_distributions.RECORD, *attribution.RECORDS),
    *(study.record for module in (batchnorm_runs, finetuning_runs, layerwise_runs) for study in module.COMPARISONS),
    *(batchnorm_exact.NO_NOISE, fedavg_rounds.STUDY.record, fedavg_text.RECORD),
    *(pretraining_runs.STUDY.record, pretraining_standard.STANDARD.record),
)
"""The records, in the order in which `make records` works them off."""


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return queue.main(QUEUE, arguments[arguments[:1] == ["records"] :])


if __name__ == "__main__":
    sys.exit(main())
