"""Names of published files, and files that have the wrong ones."""

import string
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from robustguide.cards import cards
from robustguide.checkpoints import build, load_classifier
from robustguide.checkpoints.convert import convert
from robustguide.checkpoints.keys import original, renamed, translated

DESCRIBED = {
    "class_path": "robustguide.classifiers.Timed",
    "init_args": {
        "net": {
            "class_path": "robustguide.nets.MLP",
            "init_args": {"shape": [1, 2, 2], "num_logits": 3, "width": 4, "depth": 1},
        },
        "levels": {"class_path": "robustguide.noise.linear_levels", "init_args": {}},
        "num_classes": 3,
    },
}
TENSORS = build(DESCRIBED).net.state_dict()
CHANGES = ("drop", "rename", "add", "shape", "type", "nan", "empty")


@pytest.fixture(scope="module")
def small():
    """A card of a network of three layers, known while the tests of this file run."""
    of = replace(
        cards()["kawar-cifar10-classifier"], name="small", file="small*", shape=(1, 2, 2),
        specification=DESCRIBED, parameters=None, classes=None,
    )  # fmt: skip
    cards()["small"] = of
    yield of
    del cards()["small"]


def test_the_longest_beginning_counts():
    tensors = {"a.b.c": torch.zeros(1), "a.d": torch.ones(1), "skip.me": torch.ones(2)}
    found = renamed(tensors, {"a.": "x.", "a.b.": "y."}, ("skip.",))
    assert found == {"y.c": tensors["a.b.c"], "x.d": tensors["a.d"]}


def test_unknown_and_double_names_are_told():
    tensors = {"a.c": torch.zeros(1), "b.c": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"'b\.c', whose name begins with none of a\."):
        renamed(tensors, {"a.": "x."}, ())
    with pytest.raises(
        ValueError, match=r"two of its tensors are 'x\.c' here, one of them 'b\.c'"
    ):
        renamed(tensors, {"a.": "x.", "b.": "x."}, ())


def test_there_and_back(small):
    ours = translated(small, TENSORS)
    assert all(name.startswith("net.") for name in ours)
    back = original(small, ours)
    assert all(back[name] is tensor for name, tensor in TENSORS.items())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_whole_numbers_are_no_weights(small, tmp_path, suffix):
    tensors = dict(TENSORS) | {"leave.bias": torch.zeros(3, dtype=torch.int32)}
    path = tmp_path / f"small.{suffix}"
    torch.save(tensors, path) if suffix == "pt" else save_file(tensors, path)
    told = r"leave\.bias: file torch\.int32, network torch\.float32"
    with pytest.raises(ValueError, match=told):
        load_classifier(str(path))
    with pytest.raises(ValueError, match=told):
        convert(small, path, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=30)
changes = st.lists(
    st.tuples(st.sampled_from(CHANGES), st.integers(0, len(TENSORS) - 1), names), max_size=4
)


def changed(edits):
    """A state dict with faults, and whether it still is the network's."""
    tensors = dict(TENSORS)
    for kind, index, name in edits:
        victim = list(TENSORS)[index]
        value = tensors.get(victim)
        if kind == "add":
            tensors[name] = torch.zeros(2)
        elif value is not None:
            tensors.pop(victim)
            match kind:
                case "rename":
                    tensors[name] = value
                case "shape":
                    tensors[victim] = value.flatten()[:-1].clone()
                case "type":
                    tensors[victim] = value.to(torch.int32)
                case "nan":
                    tensors[victim] = torch.full_like(value.float(), float("nan"))
                case "empty":
                    tensors[victim] = value[:0].clone()
    same = sorted(tensors) == sorted(TENSORS) and all(
        tensors[name].shape == value.shape
        and tensors[name].is_floating_point()
        and tensors[name].isfinite().all()
        for name, value in TENSORS.items()
    )
    return tensors, same


@pytest.mark.parametrize(
    ("suffix", "examples"),
    [
        ("pt", 30),
        ("safetensors", 30),
        pytest.param("pt", 1000, marks=pytest.mark.check),
        pytest.param("safetensors", 1000, marks=pytest.mark.check),
    ],
)
def test_files_with_wrong_tensors_are_refused_in_our_own_words(small, tmp_path, suffix, examples):
    """Whatever is missing, too much, misnamed, of another shape or type, or no number."""
    path = tmp_path / f"small.{suffix}"
    outcomes = set()

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changes)
    def check(edits):
        tensors, same = changed(edits)
        torch.save(tensors, path) if suffix == "pt" else save_file(tensors, path)
        if same:
            classifier = load_classifier(str(path))
            assert all(torch.equal(classifier.net.state_dict()[k], v) for k, v in TENSORS.items())
        else:
            with pytest.raises(ValueError) as caught:
                load_classifier(str(path))
            message = str(caught.value)
            assert str(path) in message and message.rstrip().endswith(".")
        outcomes.add(same)

    check()
    assert outcomes == {True, False}
