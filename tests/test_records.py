"""Every recorded picture of a study has a name by which it is made again."""

import pytest

from fedlab_core.studies.__main__ import RECORDS, main
from fedlab_core.studies.record import FIGURES

OTHERS = {"claims", "bench", "first_run", "workbench"}  # by other commands


def test_every_record_in_figures_can_be_made_again() -> None:
    found = {path.stem for path in FIGURES.glob("*.json")} - OTHERS
    assert found <= set(RECORDS)
    assert {path.stem for path in FIGURES.glob("*.png")} - OTHERS == found, "a picture and its data belong together"


def test_names_are_checked_before_anything_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    made = []
    for name in RECORDS:
        monkeypatch.setitem(RECORDS, name, lambda name=name, **options: made.append((name, options)))
    with pytest.raises(SystemExit):
        main(["fedavg_mnist", "nothing"])
    with pytest.raises(SystemExit):
        main(["fedavg_mnist", "--device", "cuda"])
    assert made == [] and "only the batch-norm study takes one" in capsys.readouterr().err
    assert main(["batchnorm_cifar", "--device", "cuda"]) == 0 and main(["layerwise_digits", "pretraining"]) == 0
    assert made == [("batchnorm_cifar", {"device": "cuda"}), ("layerwise_digits", {}), ("pretraining", {})]
