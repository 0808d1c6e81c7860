"""Splits of a data set, its loss and its metrics."""

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab_core.data import Dataset, load_dataset
from fedlab_core.data.feature_skew import FeatureSkew
from fedlab_core.data.measures import absolute_error, accuracy, squared_error

FAST = settings(max_examples=40)


def table(n: int = 20, test: int = 6, **fields) -> Dataset:
    """Feature 0 is the number of the example, so that every example can be told."""
    x = torch.arange(n + test, dtype=torch.float32)[:, None].expand(-1, 3).contiguous()
    y = torch.arange(n + test) % 2
    return Dataset("numbered", "table", x[:n], y[:n], x[n:], y[n:], **({"classes": ("even", "odd")} | fields))


@FAST
@given(n=st.integers(2, 60), data=st.data(), seed=st.integers(0, 2**32))
def test_validation_and_training_are_a_partition_drawn_by_address(n, data, seed):
    whole = table(n, groups=torch.arange(n), group_names=tuple(map(str, range(n))))
    count = data.draw(st.integers(1, n - 1))
    parts, again = whole.with_validation(count, seed), whole.with_validation(count, seed)
    (x, y), (held_x, held_y) = parts.split("train"), parts.split("validation")
    assert len(held_x) == len(held_y) == count
    both = torch.cat((x[:, 0], held_x[:, 0]))
    assert both.sort().values.tolist() == list(range(n))
    for part_x, part_y in ((x, y), (held_x, held_y)):
        assert part_x[:, 0].tolist() == sorted(part_x[:, 0].tolist())  # the original order
        assert torch.equal(part_x[:, 0].long() % 2, part_y)
    assert torch.equal(parts.groups, x[:, 0].long())
    assert torch.equal(parts.split("test")[0], whole.test_x) and parts.fingerprint == again.fingerprint
    assert parts.fingerprint != whole.fingerprint and f"{count} of {n} training examples for validation" in parts.notes


def test_a_share_is_rounded_and_seeds_differ():
    whole = table(50)
    assert len(whole.with_validation(0.1).validation_x) == 5
    assert len(whole.with_validation(0.25, seed=3).validation_x) == 12
    assert whole.with_validation(10, seed=1).fingerprint != whole.with_validation(10, seed=2).fingerprint
    state = torch.get_rng_state()
    whole.with_validation(10)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("size", [0, 20, -1, 1.5, 0.0, 1.0, 1e-9, True, float("nan"), "half", None])
def test_impossible_validation_says_what_is_possible(size):
    with pytest.raises(ValueError, match=f"size={size!r}, accepted: a share .* 1 to 19 of 20 training examples"):
        table().with_validation(size)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda d: d.subset(2.5), "n=2.5, accepted: a whole number"),
        (lambda d: d.subset(5, "all"), "test_n='all', accepted: a whole number"),
        (lambda d: d.subset(5, seed="a"), "seed='a', accepted: a whole number"),
        (lambda d: d.with_validation(5, seed=None), "seed=None, accepted: a whole number"),
        (lambda d: load_dataset("letters", seed=0.5), "seed=0.5, accepted: a whole number"),
        (lambda d: load_dataset("scenes", per_class=10**9), "per_class=1000000000, accepted: .* <= 10000"),
        (lambda d: load_dataset("python_docs", length="80"), "length='80', accepted: a whole number"),
        (lambda d: load_dataset(7), "name=7, accepted: a text"),
        (lambda d: FeatureSkew("blur", torch.zeros(2)), "kind='blur', accepted: 'rotation', 'contrast', 'noise'"),
    ],
)
def test_other_arguments_are_named_too(call, says):
    with pytest.raises(ValueError, match=says):
        call(table())


def test_split_names_what_there_is():
    data = table()
    assert data.split("train")[0] is data.x and data.split("test")[1] is data.test_y
    with pytest.raises(ValueError, match="split='valid', accepted: 'train', 'validation', 'test'"):
        data.split("valid")
    with pytest.raises(ValueError, match="split='validation': numbered has no validation examples; make one with"):
        data.split("validation")
    empty = dataclasses.replace(data, validation_x=data.x[:0], validation_y=data.y[:0])
    assert empty.fingerprint == data.fingerprint
    with pytest.raises(ValueError, match="no validation examples"):
        empty.split("validation")
    with pytest.raises(ValueError, match="has 3 validation examples already"):
        data.with_validation(3).with_validation(3)


def test_fingerprints_of_sets_without_validation_are_those_of_earlier_versions():
    x = torch.arange(2 * 4, dtype=torch.uint8).view(2, 1, 2, 2)
    data = Dataset("fixed", "image", x, torch.tensor([0, 1]), x, torch.tensor([1, 0]), ("a", "b"), (0.0,), (1.0,))
    assert data.fingerprint == "2f6a3695583f7b4f"


def test_measures_give_one_value_per_target_that_counts():
    outputs, targets = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([1, 1, -100])
    assert accuracy(outputs, targets).tolist() == [1.0, 0.0]
    assert accuracy(outputs[None], targets[None]).tolist() == [1.0, 0.0]
    column, row = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 4.0, 2.0])
    assert squared_error(column, row).tolist() == [0.0, 4.0, 4.0]  # never 3 x 3 by broadcasting
    assert absolute_error(column, row).tolist() == [0.0, 2.0, 2.0]
    assert squared_error(torch.ones(2, 2), torch.tensor([[1.0, 3.0]] * 2)).tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"outputs=\(3, 2\): accepted is the shape of the targets, \(3,\)"):
        squared_error(torch.zeros(3, 2), row)


def test_loss_and_metrics_of_a_data_set():
    data = table()
    assert data.loss is None and data.metrics == {"accuracy": accuracy} and data.outputs == 2
    y = torch.linspace(0, 1, 26)
    own = dataclasses.replace(data, y=y[:20], test_y=y[20:], classes=(), loss="mse")
    assert own.loss is squared_error and own.metrics == {"absolute_error": absolute_error}
    assert own.outputs == 1 and own.num_classes == 0 and "1 target values" in repr(own)
    named = dataclasses.replace(own, metrics={"squared": squared_error})
    assert named.metrics == {"squared": squared_error}
    copy = pickle.loads(pickle.dumps(named))
    assert copy.loss is squared_error and copy.fingerprint == own.fingerprint


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": "hinge"}, "loss='hinge', accepted: None .*, 'mse' or a function"),
        ({"loss": 3}, "loss=3, accepted"),
        ({"metrics": {"f1": 3}}, r"metrics=\{'f1': 3\}, accepted: a dict from names to functions"),
        ({"metrics": accuracy}, "metrics=<function accuracy"),
        ({"y": torch.zeros(20)}, "training y must be int64 class indices .* got y=float32 .20,.*loss='mse'"),
        ({"classes": ()}, r"classes=\(\): accepted is one name per class"),
        ({"classes": "ab"}, "classes='ab', accepted: a tuple of names"),
        ({"name": 3}, "name=3, accepted: a text"),
        ({"notes": None}, "notes=None, accepted: a text"),
        ({"classes": ["even", "odd"]}, "classes=.*accepted: a tuple of names"),
        ({"validation_x": torch.zeros(3, 3)}, "validation_y is a NoneType"),
    ],
)
def test_wrong_measures_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(table(), **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prepare_standardises_floats_in_their_own_precision(dtype):
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.zeros(30, dtype=torch.int64)
    data = Dataset("own", "table", x, y, x, y, ("a",), (1.0, 2.0, 3.0), (2.0, 4.0, 8.0))
    assert torch.equal(data.prepare(x), (x - x.new_tensor(data.mean)) / x.new_tensor(data.std))
    assert data.prepare(x).dtype == dtype
    plain = dataclasses.replace(data, mean=(), std=())
    assert plain.prepare(x) is x and data.input_shape == (3,) and "3 features" in repr(data)
    images = x.view(5, 2, 3, 3)
    data = Dataset("own", "image", images, y[:5], images, y[:5], ("a",), (1.0, 2.0), (2.0, 4.0))
    assert torch.equal(data.prepare(images)[:, 1], (images[:, 1] - 2) / 4)


def test_wrong_values_are_named_when_a_federation_is_built():
    from fedlab_core.federation import Federation
    from fedlab_core.partition import pooled
    from fedlab_core.settings import Settings

    data = table()
    shifted = dataclasses.replace(data, y=data.y + 1, test_y=data.test_y + 1)
    for engine in ("loop", "stacked"):
        with pytest.raises(ValueError, match="training y must be between 0 and 1 .* got y from 1 to 2; subtract 1"):
            Federation(shifted, pooled(20), torch.nn.Linear(3, 2), Settings(engine=engine))
    holes = data.x.clone()
    holes[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"training x must be finite, got x\[3, 1\]=nan and 0 more"):
        Federation(dataclasses.replace(data, x=holes), pooled(20), torch.nn.Linear(3, 2), Settings())
    with pytest.raises(
        ValueError, match="training groups must be between 0 and 0, the last of group_names, got groups"
    ):
        dataclasses.replace(data, groups=torch.arange(20), group_names=("one",)).check()


def test_a_model_learns_a_table_and_a_regression():
    from fedlab_core.federation import Federation
    from fedlab_core.partition import pooled
    from fedlab_core.settings import Settings

    draws = torch.Generator().manual_seed(0)
    x = torch.randn(120, 3, generator=draws)
    y = x @ torch.tensor([1.0, -2.0, 0.5])
    data = Dataset.from_arrays(x[:100], y[:100], x[100:], y[100:], loss="mse")
    model = torch.nn.Linear(3, data.outputs)
    run = Federation(data, pooled(100), model, Settings(fraction=1.0, epochs=5, lr=0.1)).run(2)
    assert run.history[-1].metrics["test_loss"] < 1e-3 and run.history[-1].metrics["test_absolute_error"] < 0.05
