"""Sets that match, and those that do not; runs of `robustguide test`."""

import json

import pytest
import surveys
import torch
from safetensors.torch import save_file
from sampled import Held

from robustguide.data.generated import write_samples
from robustguide.survey.sets import RunSamples, matched, open_set, pictures


def run(folder, count=7, tensors=None, **data):
    """What `robustguide test` leaves, as far as it is read."""
    folder.mkdir()
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 4, 4)
    index = torch.arange(20, 20 + count)
    found = {"pixels": pixels.contiguous(), "index": index, "y": index % 3} | (tensors or {})
    kept = {name: each for name, each in found.items() if each is not None}
    save_file(kept, folder / "samples.safetensors")
    told = {"count": 100, "num_classes": 3, "first": 20, "class_names": None, "labels": None}
    kind = {"class_path": "robustguide.data.SeedData", "init_args": told | data}
    made = {"config": {"data": kind}, "checkpoints": {"a.safetensors": "12"}}
    (folder / "results.json").write_text(json.dumps({"run": made}))
    return folder


def test_a_run_tells_seeds_and_classes(tmp_path):
    found = open_set(run(tmp_path / "a"))
    assert isinstance(found, RunSamples) and (found.count, found.shape) == (7, (1, 4, 4))
    (batch,) = found.batches(10)
    assert batch.seed.tolist() == found.seeds().tolist() == list(range(20, 27))
    assert batch.y.tolist() == [index % 3 for index in range(20, 27)]
    assert batch.pixels[:, 0, 0, 0].tolist() == list(range(7))
    assert [found.name_of(y) for y in range(3)] == ["0", "1", "2"]
    assert found.made["checkpoints"] == ["12"]
    same = open_set(tmp_path / "a/samples.safetensors")
    assert same.seeds().tolist() == found.seeds().tolist()


def test_labels_by_any_rule(tmp_path):
    names, y = ["cat", "dog", "fox"], torch.tensor([2, 2, 0, 1, 2, 2, 0])
    mine = {"class_path": "mine.Labels"}
    made = run(tmp_path / "a", tensors={"y": y}, labels=mine, class_names=names)
    classes = {20 + row: names[label] for row, label in enumerate(y.tolist())}
    assert matched({"a": open_set(made)}) == classes


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"index": None}, r"7 images, and 'index' of torch.float32 and shape \[0\]"),
        ({"y": None}, "7 images, and 'y' .* Run the test again"),
        ({"y": torch.zeros(3, dtype=torch.long)}, r"'y' of torch.int64 and shape \[3\]"),
        ({"index": torch.zeros(7)}, r"'index' of torch.float32 and shape \[7\]"),
    ],
)
def test_runs_that_do_not_tell_seeds_and_labels(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        open_set(run(tmp_path / "a", tensors=tensors))


def test_damaged_runs(tmp_path):
    made = run(tmp_path / "a")
    (made / "results.json").write_text('{"run": {}}')
    with pytest.raises(ValueError, match="does not tell how the images"):
        open_set(made)
    (made / "results.json").unlink()
    with pytest.raises(ValueError, match="does not tell how the images"):
        open_set(made)
    save_file({"pixels": torch.zeros(3, 4, 4)}, made / "samples.safetensors")
    with pytest.raises(ValueError, match="expected uint8 images"):
        open_set(made)
    (made / "samples.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="Cannot read"):
        open_set(made)


@pytest.mark.parametrize("form", ["folder", "a.npz", "a.tar"])
def test_samples_of_predictions_in_all_forms(tmp_path, form):
    samples = Held()
    write_samples(samples, tmp_path / form)
    classes = dict(zip(samples.seed.tolist(), samples.y.tolist(), strict=True))
    names = samples.class_names
    found = open_set(tmp_path / form)
    assert matched({"a": found, "b": samples}) == {s: names[y] for s, y in classes.items()}
    chosen = set(samples.seed[2:4].tolist())
    images = pictures(found, chosen)
    assert images.keys() == chosen
    for seed, pixels in zip(samples.seed[2:4].tolist(), samples.pixels[2:4], strict=True):
        assert torch.equal(torch.from_numpy(images[seed]), pixels)


def refused(message, **changes):
    one, two = surveys.Seen(0), surveys.Seen(1)
    for name, value in changes.items():
        setattr(two, name, value)
    with pytest.raises(ValueError, match=message):
        matched({"one": one, "two": two})


def test_other_seeds_are_named():
    seed = surveys.Seen(0).seed.clone()
    lost = seed[5].item()
    seed[5] = 5
    refused(rf"1 only in 'one' \({lost}\) and 1 only in 'two' \(5\)", seed=seed)
    refused(r"24 only in 'one' \(\d+, \d+, \d+, \.\.\.\)", seed=seed + 10**6)
    seed = surveys.Seen(0).seed.clone()
    seed[1] = seed[0]
    refused(f"'two' holds two samples of seed {seed[0].item()}", seed=seed)


def test_other_classes_are_named():
    samples = surveys.Seen(0)
    y, seed = samples.y.clone(), samples.seed[4].item()
    y[4] = 2
    refused(
        rf"1 of 24 seeds .* \({seed}\): seed {seed} is of class 'dog' in 'one' and of class "
        "'tree frog'",
        y=y,
    )
    refused("24 of 24 seeds .*no class in 'two'", y=None)
    refused("8 of 24 seeds", class_names=["cat", "dog", "frog"])
    refused(
        "24 of 24 seeds .* of class 'cat' in 'one' and of class 1 in 'two'",
        class_names=None,
        y=(samples.y + 1) % 3,
    )


def test_labels_are_compared_where_one_set_has_no_names():
    one, two = surveys.Seen(0), surveys.Seen(1)
    one.class_names = None
    assert set(matched({"one": one, "two": two}).values()) == {"cat", "dog", "tree frog"}
    one.y = two.y = None
    assert set(matched({"one": one, "two": two}).values()) == {None}


def test_other_shapes_are_named():
    two = surveys.Seen(1, shape=(1, 9, 8))
    with pytest.raises(ValueError, match=r"shape \[1, 8, 8\], those of 'two' of \[1, 9, 8\]"):
        matched({"one": surveys.Seen(0), "two": two})
