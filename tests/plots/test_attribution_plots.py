"""The pictures of an attribution show its numbers."""

import pytest
import torch

from fedlab_core import plots
from fedlab_core.plots import attribution as pictures
from fedlab_core.probes.attribution import Attribution, gathered
from fedlab_core.probes.cells import CAUSES, subsets


def found(seeds: int) -> Attribution:
    draws = torch.rand(seeds, 16, 2, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [[{"round": [0, 5], "test_accuracy": cell} for cell in seed] for seed in draws]
    return gathered(CAUSES, range(seeds), rows, [0.1] * 16)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_waterfall_leads_from_centralised_to_federated(seeds: int) -> None:
    data, (_, axes) = found(seeds), plots.figure()
    ax = pictures.waterfall(axes[0, 0], data)
    bars = ax.patches
    values = data.values["test_accuracy"][..., -1].mean(0)
    assert len(bars) == 6
    assert bars[0].get_height() == pytest.approx(values[0]) and bars[-1].get_height() == pytest.approx(values[-1])
    level = values[0]
    for bar, part in zip(bars[1:-1], data.parts()[..., -1].mean(0), strict=True):
        assert bar.get_y() == pytest.approx(level) and bar.get_height() == pytest.approx(part)
        level = level + part
    assert level == pytest.approx(values[-1])
    assert len(ax.collections) == (6 if seeds > 1 else 0)  # an interval each


def test_the_cells_are_sorted_and_their_dots_say_what_is_on() -> None:
    data, (_, axes) = found(1), plots.figure()
    ax = pictures.cells(axes[0, 0], data)
    points = [line for line in ax.lines if line.get_markersize() == 3.5]
    best = sorted((v for v in data.values["test_accuracy"][0, :, -1].tolist()), reverse=True)
    assert [line.get_xdata()[0] for line in points] == pytest.approx(best)
    coloured = [line for line in ax.lines if line.get_markersize() == 6.5 and line.get_color() != "0.9"]
    assert len(coloured) == sum(map(len, subsets(CAUSES)))


def test_the_parts_over_rounds_end_where_the_waterfall_is() -> None:
    data, (_, axes) = found(3), plots.figure()
    lines = pictures.over_rounds(axes[0, 0], data).lines[:5]
    ends = [data.gap().mean(0)[-1], *data.parts().mean(0)[:, -1]]
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx([end.item() for end in ends])
