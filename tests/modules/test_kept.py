"""The file of kept logits, and what tells one from another."""

import copy

import pytest
import torch
from tiny import classifier as described

from robustguide.checkpoints import build
from robustguide.data import Digits
from robustguide.modules import kept
from robustguide.modules.kept import Kept

ABOUT = {"levels": (0.1, 1.0), "classifier": "abc", "denoiser": None}


def some():
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    return Kept(logits, torch.arange(5) % 3, torch.tensor([0, 0, 1, 1, 7]), torch.arange(5) % 2)


def test_a_file_gives_back_what_was_written(tmp_path):
    path, rows = tmp_path / "run/logits.safetensors", some()
    kept.write(path, rows, ABOUT)
    assert kept.differences(path, ABOUT) == []
    found = kept.read(path)
    assert all(torch.equal(getattr(found, name), each) for name, each in vars(rows).items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_of_others_says_what_differs(tmp_path):
    path = tmp_path / "logits.safetensors"
    kept.write(path, some(), ABOUT)
    changed = ABOUT | {"classifier": "abd", "levels": (0.1, 2.0), "draws": 2}
    assert kept.differences(path, changed) == ["classifier", "draws", "levels"]
    path.write_bytes(path.read_bytes()[:100])
    assert kept.differences(path, ABOUT) == ["all"]


def test_rows_come_in_chunks_with_their_levels(monkeypatch):
    monkeypatch.setattr(kept, "CHUNK", 9)  # three rows of three logits
    rows = some()
    logits, y, sigma = (torch.cat(parts) for parts in zip(*rows.chunks([0.1, 1.0]), strict=True))
    assert torch.equal(logits, rows.logits.flatten(0, 1))
    assert torch.equal(y, rows.y.repeat(2))
    assert sigma.tolist() == [0.1] * 5 + [1.0] * 5
    assert [len(part) for part, *_ in rows.chunks([0.1, 1.0])] == [3, 3, 3, 1]


def test_a_network_is_known_by_its_tensors_and_its_making():
    spec = described()
    network = build(spec)
    told = kept.hash_of_network(network, spec)
    assert told == kept.hash_of_network(copy.deepcopy(network), spec)
    assert kept.hash_of_network(None, None) is None
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 1e-6
    hidden = copy.deepcopy(network)
    hidden.register_buffer("table", torch.ones(1), persistent=False)
    respecified = spec | {"init_args": spec["init_args"] | {"num_classes": 11}}
    hashes = {
        told,
        kept.hash_of_network(other, spec),
        kept.hash_of_network(hidden, spec),
        kept.hash_of_network(network, respecified),
        kept.hash_of_network(network, None),
        kept.hash_of_network(torch.nn.Sequential(network, torch.nn.ReLU()), None),
        kept.hash_of_network(torch.nn.Sequential(network, torch.nn.Softplus(3)), None),
    }
    assert len(hashes) == 7


def test_a_network_of_a_file_is_the_same_under_another_name(runs, tmp_path):
    path = runs / "classifier/classifier.safetensors"
    again = tmp_path / "renamed.safetensors"
    again.write_bytes(path.read_bytes())
    hashes = set()
    for file in (path, again):
        spec = {"class_path": "robustguide.checkpoints.load_classifier"}
        spec["init_args"] = {"path": str(file)}
        network = build(described())  # any: only the specification is compared here
        torch.nn.init.zeros_(next(network.parameters()))
        state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
        network.load_state_dict(state)
        hashes.add(kept.hash_of_network(network, spec))
    assert len(hashes) == 1


def test_images_are_known_by_their_content():
    hashes = {kept.hash_of_images(Digits(seed).split("validation")) for seed in (0, 1)}
    assert len(hashes) == 2
    assert kept.hash_of_images(Digits().split("validation")) in hashes
    assert kept.hash_of_images(Digits().split("test")) not in hashes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_no_number_is_named(value):
    logits = torch.zeros(2, 3, 4)
    kept.refuse_infinite(logits, [0.1, 2.5], torch.arange(3))
    logits[1, 2, 0] = value
    with pytest.raises(FloatingPointError, match=r"image 42 at sigma 2\.5 are not finite"):
        kept.refuse_infinite(logits, [0.1, 2.5], torch.tensor([40, 41, 42]))
