"""Pictures of fine-tuning: a method looks alike wherever it is drawn."""

from fedlab_core.plots.finetuning import COLORS, styles


def test_a_method_looks_alike_whatever_stands_beside_it() -> None:
    assert styles(["bias", "full"]) == {name: styles(["head", "bias", "full"])[name] for name in ("bias", "full")}
    both = styles(["bias, federated", "bias, alone"])
    assert both["bias, federated"]["color"] == both["bias, alone"]["color"] == styles(["bias"])["bias"]["color"]
    assert both["bias, federated"]["linestyle"] != both["bias, alone"]["linestyle"]


def test_other_names_take_colours_in_their_order() -> None:
    assert [look["color"] for look in styles(["own", "another"]).values()] == list(COLORS[:2])
