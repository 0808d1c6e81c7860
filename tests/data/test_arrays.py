"""Data sets from arrays, lists and other people's data sets: exact content, or a message that says what is wrong."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from fedlab_core.data import Dataset
from fedlab_core.data.measures import squared_error

FAST = settings(max_examples=60)
NUMBERS = np.random.default_rng(0)

# Arrays


@st.composite
def tables(draw):
    """Features of any numeric type and layout, and labels of any whole type, as numpy arrays."""
    n, width = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(["f2", "<f4", ">f4", "<f8", ">f8", "i1", "u2", "<i4", ">i8", "u8", "?"]))
    x = draw(st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(0, 2, (n, width))))
    x = (x * draw(st.sampled_from([1, 100]))).astype(dtype)
    y = (np.arange(n) % 3).astype(draw(st.sampled_from(["u1", "i4", ">i8", "u4", "u8"])))
    layout = draw(st.sampled_from([lambda a: a, lambda a: a[::-1], np.asfortranarray, lambda a: a[:, ::-1]]))
    return layout(x), y


@FAST
@given(tables(), st.sampled_from([np.asarray, np.ndarray.tolist]))
def test_tables_of_any_type_and_layout_keep_their_values(table, form):
    x, y = table
    data = Dataset.from_arrays(form(x), form(y), form(x), form(y), ["a", "b", "c"], kind="table")
    assert data.x.dtype in (torch.float32, torch.float64) and data.kind == "table"
    assert data.x.tolist() == x.astype(float).tolist() and data.y.tolist() == y.tolist()
    assert data.y.dtype == torch.int64 and data.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("x", "kind", "shape", "dtype"),
    [
        (torch.zeros(4, 3, 5, 6, dtype=torch.uint8), "image", (3, 5, 6), torch.uint8),
        (torch.zeros(4, 1, 5, 6), "image", (1, 5, 6), torch.float32),
        (torch.zeros(4, 1, 5, 6, dtype=torch.bfloat16), "image", (1, 5, 6), torch.float32),
        (np.zeros((4, 5, 6), np.uint8), "image", (1, 5, 6), torch.uint8),
        (np.zeros((4, 5, 6, 3), np.uint8), "image", (3, 5, 6), torch.uint8),
        (np.zeros((4, 5, 6, 3), np.int32), "image", (3, 5, 6), torch.uint8),
        (np.zeros((4, 5, 6, 1)), "image", (1, 5, 6), torch.float64),
        (np.zeros((4, 7)), "table", (7,), torch.float64),
        (np.zeros(4, np.float32), "table", (1,), torch.float32),
        (pd.DataFrame({"a": [1.0] * 4, "b": [2] * 4}), "table", (2,), torch.float64),
        ([[1.0, 2.0]] * 4, "table", (2,), torch.float64),
        ([torch.ones(3)] * 4, "table", (3,), torch.float32),
    ],
)
def test_the_kind_follows_from_type_and_shape(x, kind, shape, dtype):
    data = Dataset.from_arrays(x, [0, 1, 0, 1], x, [0, 1, 0, 1])
    assert (data.kind, data.input_shape, data.x.dtype, data.classes) == (kind, shape, dtype, ("0", "1"))


def test_channels_behind_come_to_the_front():
    images = NUMBERS.integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
    data = Dataset.from_arrays(images, [0, 1, 0, 1, 0], images, [0, 1, 0, 1, 0])
    assert (data.x.numpy() == images.transpose(0, 3, 1, 2)).all()
    values = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(data.std, values.std(0), atol=1e-12)


def test_next_character_text_and_labelled_text():
    x = torch.randint(0, 5, (6, 7), generator=torch.Generator().manual_seed(0))
    data = Dataset.from_arrays(x, x.roll(-1, 1), x, x.roll(-1, 1), list("abcde"))
    assert data.kind == "text" and data.classes == tuple("abcde") and data.input_shape == (7,)
    labelled = Dataset.from_arrays(x, [0, 1] * 3, x, [0, 1] * 3, kind="text")
    assert labelled.y.shape == (6,) and labelled.num_classes == 2
    with pytest.raises(ValueError, match=r"kind=None: x=int64 \(6, 7\) could be several things"):
        Dataset.from_arrays(x, [0, 1] * 3, x, [0, 1] * 3)


def test_words_become_classes_in_order():
    x = np.zeros((4, 2))
    data = Dataset.from_arrays(x, ["dog", "cat", "dog", "emu"], x, np.array(["cat"] * 4, dtype=object))
    assert data.classes == ("cat", "dog", "emu") and data.y.tolist() == [1, 0, 1, 2] and not data.test_y.any()
    data = Dataset.from_arrays(x, ["dog", "cat", "dog", "cat"], x, ["cat"] * 4, ["emu", "dog", "cat"])
    assert data.y.tolist() == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="test_y has the label 'cow', accepted: cat, dog"):
        Dataset.from_arrays(x, ["dog", "cat", "dog", "cat"], x, ["cow"] * 4, ["dog", "cat"])


def test_natural_clients_by_number_or_name():
    x, y = np.zeros((4, 2)), [0, 1, 0, 1]
    data = Dataset.from_arrays(x, y, x, y, groups=["eve", "bob", "eve", "bob"], test_groups=["zoe"] * 4)
    assert data.group_names == ("bob", "eve", "zoe") and data.groups.tolist() == [1, 0, 1, 0]
    assert data.test_groups.tolist() == [2] * 4
    assert Dataset.from_arrays(x, y, x, y, groups=[7, 3, 7, 7]).groups.tolist() == [1, 0, 1, 1]
    with pytest.raises(ValueError, match="groups is float64 .4,., accepted: one whole number or word per example"):
        Dataset.from_arrays(x, y, x, y, groups=[0.5, 1, 1, 1])


def test_validation_as_examples_or_as_a_share():
    x, y = torch.arange(40.0).view(20, 2), torch.arange(20) % 2
    given = Dataset.from_arrays(x, y, x[:5], y[:5], validation=(x[5:8], y[5:8]))
    assert torch.equal(given.split("validation")[0], x[5:8]) and len(given.x) == 20
    drawn = Dataset.from_arrays(x, y, x[:5], y[:5], validation=0.2)
    assert (
        len(drawn.x) == 16
        and drawn.fingerprint == Dataset.from_arrays(x, y, x[:5], y[:5]).with_validation(4).fingerprint
    )
    with pytest.raises(ValueError, match="validation has 3 entries, accepted: inputs and targets, or a share"):
        Dataset.from_arrays(x, y, x, y, validation=(x, y, y))
    with pytest.raises(ValueError, match="size=20, accepted"):
        Dataset.from_arrays(x, y, x, y, validation=20)


def test_arrays_are_copied_and_the_fingerprint_is_that_of_tensors():
    x, y = NUMBERS.normal(size=(6, 3)), np.arange(6) % 2
    data = Dataset.from_arrays(x, y, x, y)
    before = data.x.clone()
    x[:] = 0
    assert torch.equal(data.x, before) and data.fingerprint == Dataset.from_arrays(before, y, before, y).fingerprint


def test_standardised_features_have_mean_0_and_deviation_1():
    x = NUMBERS.normal(5, 3, (200, 4)) * [1, 10, 100, 0]
    data = Dataset.from_arrays(x, [0, 1] * 100, x, [0, 1] * 100, standardise=True)
    z = data.prepare(data.x)
    assert z.mean(0).abs().max() < 1e-10 and torch.allclose(z[:, :3].std(0, correction=0), torch.ones(3).double())
    assert data.std[3] == 1.0 and not z[:, 3].any()
    plain = Dataset.from_arrays(x, [0, 1] * 100, x, [0, 1] * 100)
    assert plain.prepare(plain.x) is plain.x


def test_regression_on_synthetic_houses():
    from sklearn.datasets import make_regression

    x, y = make_regression(300, 8, noise=0.1, random_state=0)
    data = Dataset.from_arrays(x[:200], y[:200], x[200:], y[200:], loss="mse", validation=0.25, standardise=True)
    assert (len(data.x), len(data.validation_x), data.outputs, data.classes) == (150, 50, 1, ())
    assert data.loss is squared_error and list(data.metrics) == ["absolute_error"] and data.y.dtype == torch.float32

    def with_constant(x):
        return torch.cat((data.prepare(x), torch.ones(len(x), 1)), 1)

    weights = torch.linalg.lstsq(with_constant(data.x), data.y.double()[:, None]).solution
    x, y = data.split("test")
    outputs = with_constant(x) @ weights
    assert float(data.loss(outputs, y).mean()) < 1.0 < float(y.var())
    with pytest.raises(ValueError, match="training y must be int64 class indices .* for regression give loss='mse'"):
        Dataset.from_arrays(x, y, x, y)


X, Y = np.zeros((4, 2)), [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((X, [1, 2, 3, 1], X, Y[:4]), {"classes": list("abc")}, "training y must be between 0 and 2 .*; subtract 1"),
        ((X, [1, 2, 3, 1], X, [1, 2, 3, 1]), {}, "classes=None: labels from 1 to 3, accepted: from 0; subtract 1"),
        ((X, [0, -1, 1, 1], X, Y), {}, "training y must be between 0 and 1 .*got y from -1 to 1"),
        ((X, [0, 10**9, 1, 1], X, Y), {}, "labels up to 1000000000, accepted: below 1000000"),
        ((X, [-100] * 4, X, Y), {}, "training y must have a target that counts, got y with nothing but -100"),
        ((X, Y[:3], X, Y), {}, r"training y must be as long as its x, 4 examples, got y=int64 \(3,\)"),
        ((X, [[0], [1], [0], [1]], X, [[0]] * 4), {}, r"training y must be int64 of shape \(4,\), got y=int64"),
        ((X, Y, X[:0], []), {}, r"test x must have at least one example, got test_x=float64 \(0, 2\)"),
        ((X[:0], [], X, Y), {}, "training x must have at least one example"),
        ((X, Y, X[:, :1], Y), {}, r"test x must be of shape \(n, 2\) as in training, got test_x=float64 \(4, 1\)"),
        ((X, Y, X.astype("f4"), Y), {}, "test and training x must be of one type, got test_x=float32"),
        (([[0.0, np.nan], [0, 0], [0, 0], [0, np.inf]], Y, X, Y), {}, r"got x\[0, 1\]=nan and 1 more like it"),
        ((X, Y, [[0, 0], [0, 0], [0, 0], [np.inf, 0]], Y), {}, r"test x must be finite, got test_x\[3, 0\]=inf"),
        (([[1, 2], [3]], Y[:2], X, Y), {}, "x is no array: .*accepted: examples of one shape"),
        (([torch.ones(2), torch.ones(3)], Y[:2], X, Y), {}, r"x has tensors of the shapes \(2,\), \(3,\)"),
        ((np.array([["a", "b"]] * 4), Y, X, Y), {}, "x holds strings .*accepted: numbers"),
        ((np.array([[None, 1]] * 4), Y, X, Y), {}, "x holds Python objects .*accepted: numbers"),
        ((X.astype(complex), Y, X, Y), {}, "x holds complex numbers"),
        ((torch.zeros(4, 2, dtype=torch.cfloat), Y, X, Y), {}, "x is complex64 .*accepted: real numbers"),
        ((np.ma.array(X, mask=X == 0), Y, X, Y), {}, "x is a masked array with masked values"),
        ((np.array([[2**64 - 1, 0]] * 4, dtype="u8"), Y, X, Y), {"kind": "table"}, "x has the value 18446744073709551"),
        ((torch.eye(4).to_sparse(), Y, X, Y), {}, "x has layout=torch.sparse_coo, accepted: a dense tensor"),
        ((np.full((4, 1, 2, 2), 300), Y, X, Y), {}, "x has whole numbers from 300 to 300, accepted for images"),
        ((np.zeros((4, 2, 2)), Y, np.zeros((4, 2, 2)), Y), {}, r"kind=None: x=float64 \(4, 2, 2\) could be several"),
        ((X, Y, X, Y), {"kind": "sound"}, "kind='sound', accepted: 'image', 'text', 'table'"),
        ((X, Y, X, Y), {"kind": "image"}, r"training x must be uint8, .* for kind='image', got x=float64 \(4, 2\)"),
        ((X, Y, X, Y), {"classes": "ab"}, "classes='ab', accepted: a list of a text or None"),
        ((X, Y, X, Y), {"classes": ["a"]}, "training y must be between 0 and 0"),
        ((X, [0.5] * 4, X, [np.nan] * 4), {"loss": "mse"}, r"test y must be finite, got test_y\[0\]=nan and 3 more"),
    ],
)  # fmt: skip
def test_mistakes_are_named(arguments, options, says):
    with pytest.raises(ValueError, match=says):
        Dataset.from_arrays(*arguments, **options)


def test_the_constructor_says_who_takes_arrays():
    x, y = np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.int64)
    with pytest.raises(ValueError, match="x is a numpy.ndarray, accepted: a torch.Tensor; Dataset.from_arrays takes"):
        Dataset("own", "image", x, y, x, y, ("a",), (0.0,), (1.0,))
    t = torch.zeros(4, 2, requires_grad=True)
    with pytest.raises(ValueError, match="x has requires_grad=True, accepted: a dense tensor"):
        Dataset("own", "table", t, torch.zeros(4).long(), t, torch.zeros(4).long(), ("a",))


# Other people's data sets


def test_tensor_datasets_and_subsets_of_them():
    x, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    whole = TensorDataset(x, y)
    data = Dataset.from_torch(whole, Subset(whole, [4, 0]), validation=Subset(whole, [8]))
    assert torch.equal(data.x, x) and torch.equal(data.test_x, x[[4, 0]]) and data.test_y.tolist() == [1, 0]
    assert torch.equal(data.validation_x, x[8:]) and data.name == "TensorDataset"
    assert len(Dataset.from_torch(whole, whole, validation=3).validation_x) == 3
    regression = Dataset.from_torch(TensorDataset(x, x[:, :2]), TensorDataset(x, x[:, :2]), loss="mse", name="two")
    assert regression.outputs == 2 and regression.name == "two"


def test_torchvision_images_with_and_without_a_transform():
    from torchvision.datasets import FakeData
    from torchvision.transforms import ToTensor

    raw = FakeData(12, (3, 8, 9), num_classes=4)
    data = Dataset.from_torch(raw, Subset(raw, range(5)), [f"class {i}" for i in range(4)])
    assert data.kind == "image" and data.x.dtype == torch.uint8 and data.input_shape == (3, 8, 9)
    assert all(torch.equal(data.x[i], torch.from_numpy(np.array(raw[i][0])).movedim(2, 0)) for i in range(12))
    assert data.y.tolist() == [int(raw[i][1]) for i in range(12)] and torch.equal(data.test_x, data.x[:5])
    floats = Dataset.from_torch(
        FakeData(12, (3, 8, 9), num_classes=4, transform=ToTensor()), raw_floats(raw), list("abcd")
    )
    assert torch.equal(floats.x, data.x.float() / 255) and floats.mean == () and floats.prepare(floats.x) is floats.x


def raw_floats(raw):
    return [(torch.from_numpy(np.array(raw[i][0])).movedim(2, 0) / 255, raw[i][1]) for i in range(3)]


def test_class_names_come_from_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(NUMBERS.integers(0, 256, (6, 5), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    whole = ImageFolder(str(tmp_path))
    data = Dataset.from_torch(Subset(whole, [0, 1, 3, 4]), Subset(Subset(whole, [2, 5]), [0, 1]))
    assert data.classes == ("cat", "dog") and data.y.tolist() == [0, 0, 1, 1] and data.input_shape == (3, 6, 5)


@pytest.fixture
def hugging_face():
    return pytest.importorskip("datasets")


def test_hugging_face_images_bring_their_class_names(hugging_face):
    images = [Image.fromarray(NUMBERS.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(6)]
    features = hugging_face.Features(
        image=hugging_face.Image(), label=hugging_face.ClassLabel(names=["cat", "dog", "emu"])
    )
    source = hugging_face.Dataset.from_dict({"image": images, "label": [0, 1, 2, 0, 1, 1]}, features=features)
    data = Dataset.from_torch(source, source.select([1, 2]))
    assert data.classes == ("cat", "dog", "emu") and data.y.tolist() == [0, 1, 2, 0, 1, 1]
    assert (data.x.numpy() == np.stack([np.array(i) for i in images]).transpose(0, 3, 1, 2)).all()
    assert torch.equal(data.test_x, data.x[1:3])
    formatted = Dataset.from_torch(source.with_format("torch"), source.with_format("numpy"))
    assert torch.equal(formatted.x, data.x) and torch.equal(formatted.test_x, data.x)


def test_hugging_face_tables_by_columns(hugging_face):
    columns = {"rooms": [1, 2, 3, 4], "area": [1.5, 2.5, 3.5, 4.5], "price": [10.0, 20.0, 30.0, 40.0]}
    source = hugging_face.Dataset.from_dict(columns)
    data = Dataset.from_torch(source, source, columns=(["rooms", "area"], "price"), loss="mse")
    assert data.x.tolist() == [[1, 1.5], [2, 2.5], [3, 3.5], [4, 4.5]] and data.y.tolist() == columns["price"]
    one = Dataset.from_torch(source, source, columns=("area", "price"), loss="mse")
    assert one.input_shape == (1,)
    vectors = hugging_face.Dataset.from_dict({"x": [[0.0, 1.0]] * 3, "y": ["a", "b", "a"]})
    assert Dataset.from_torch(vectors, vectors).classes == ("a", "b")
    with pytest.raises(ValueError, match="columns=None: train has rooms, area, price; name input and target"):
        Dataset.from_torch(source, source)
    with pytest.raises(ValueError, match="train has no 'cost', accepted: rooms, area, price"):
        Dataset.from_torch(source, source, columns=("rooms", "cost"))
    with pytest.raises(ValueError, match="train is a dictionary of train, accepted: one of its data sets"):
        Dataset.from_torch(hugging_face.DatasetDict(train=source), source)


GREY, WIDE = Image.new("L", (4, 4)), Image.new("L", (5, 4))


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (iter([(1, 2)]), "train is a list_iterator, accepted: a data set with a length and items"),
        ("path", "train is a str, accepted"),
        ([], "train is empty, accepted: at least one example"),
        ([(GREY, 0), (WIDE, 1)], r"train\[1\] has the shape \(4, 5\), train\[0\] has \(4, 4\).* resize the images"),
        ([(GREY, 0, 1)], r"train\[0\] is 3 values, accepted: a pair"),
        ([GREY], r"train\[0\] is Image, accepted: a pair"),
        ([(GREY, 0), (torch.zeros(1, 4, 4), 0)], "train has inputs of the types Image, Tensor, accepted: one type"),
        ([{"a": 1.0, "b": 2.0}], r"columns=None: train\[0\] has a, b; name input and target by columns"),
    ],
)
def test_what_is_no_data_set_is_named(train, says):
    with pytest.raises(ValueError, match=says):
        Dataset.from_torch(train, [(GREY, 0)])
