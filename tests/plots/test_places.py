"""One colour per meaning: a variant, a method or a start looks alike whatever stands beside it."""

from fedlab_core.plots import PLACES, Line, figure, look, places
from fedlab_core.plots import batchnorm as plots_batchnorm
from fedlab_core.plots import probes as plots_probes
from fedlab_core.studies.batchnorm_runs import VARIANTS


def colours(names):
    return {name: Line(name, [], index=index).style["color"] for name, index in places(names).items()}


def test_a_known_name_has_its_place_whatever_stands_beside_it() -> None:
    for name, place in PLACES.items():
        assert places([name])[name] == places(["own", "another", name])[name] == place
    assert places(["FedTAN", "own"]) == {"FedTAN": 1, "own": 2}
    assert places(["own", "FedAvg+BN"]) == {"own": 1, "FedAvg+BN": 0}
    assert places(["one", "two"]) == {"one": 0, "two": 1}


def test_what_a_start_is_joined_with_keeps_its_colour_and_takes_other_dashes() -> None:
    names = [f"{start}, {server}" for server in ("FedAvg", "FedAdam") for start in ("random", "letters")]
    found = colours(names)
    assert found["letters, FedAvg"] == found["letters, FedAdam"] == colours(["from letters"])["from letters"]
    looks = [Line(name, [], index=index).style for name, index in places(names).items()]
    assert len({look["linestyle"] for look in looks}) == len({look["marker"] for look in looks}) == 4
    many = places([f"random, {number}" for number in range(10)])
    assert len(set(many.values())) == 10 and len({place % 7 for place in many.values()}) == 1


def test_every_variant_has_a_place() -> None:
    assert set(VARIANTS) <= PLACES.keys()
    looks = {(PLACES[name] % 7, PLACES[name] % 4, PLACES[name] % 8) for name in VARIANTS}
    assert len(looks) == len(VARIANTS)


def test_recorded_variants_are_drawn_in_the_colours_of_the_lab() -> None:
    one = [{"test_accuracy": [0.1, 0.5], "round": [0, 1]}]
    for names in (["FedAvg+BN", "FedTAN"], ["GroupNorm", "FedTAN", "FedAvg+BN"]):
        ax = figure()[1][0, 0]
        plots_batchnorm.accuracy_against(ax, dict.fromkeys(names, one))
        drawn = {line.get_label(): line.get_color() for line in ax.get_lines()}
        assert drawn == colours(names) and drawn["FedTAN"] == colours(["FedTAN"])["FedTAN"]


def test_a_start_looks_alike_over_rounds_by_skew_and_along_lines() -> None:
    ax, by = figure()[1][0, 0], {"IID": [0.5], "Dir(0.1)": [0.4]}
    plots_probes.by_skew(ax, {"letters": by, "random": by}, {})
    plots_probes.loss_lines(ax, {"letters": {"theta": [0, 1], "loss": [1, 1], "barrier": 0.0}})
    drawn = [(line.get_label(), line.get_color(), line.get_marker()) for line in ax.get_lines()]
    expected = look(places(["letters"])["letters"])
    assert {"letters", "letters: barrier 0.000"} <= {label for label, *_ in drawn}
    for label, colour, marker in drawn:
        if label.startswith("letters"):
            assert (colour, marker) == (expected["color"], expected["marker"])
