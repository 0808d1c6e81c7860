"""Every recorded picture of a study has a name by which it is made again."""

from fedlab_core.studies.__main__ import QUEUE
from fedlab_core.studies.record import FIGURES

OTHERS = {"claims", "bench", "first_run", "workbench", "faults"}  # by other commands


def test_every_record_in_figures_can_be_made_again() -> None:
    found = {path.stem for path in FIGURES.glob("*.json")} - OTHERS
    assert found <= {record.name for record in QUEUE}
    assert {path.stem for path in FIGURES.glob("*.png")} - OTHERS == found, "a picture and its data belong together"
