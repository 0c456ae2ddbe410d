import hashlib
import re

import pytest
import sampled
import torch
from PIL import Image

from robustguide.data.generated import First, open_samples, write_samples
from robustguide.data.generated.opening import kind_of


@pytest.mark.parametrize(
    ("shape", "labels", "made"),
    [
        ((3, 6, 5), True, sampled.MADE),
        ((1, 4, 4), True, {}),
        ((3, 6, 5), False, {"method": "unguided", "scale": {}}),
    ],
)
def test_all_forms_hold_the_same(tmp_path, shape, labels, made):
    """Folder, archive, a shard, shards and a folder again."""
    told, first = [], sampled.Held(7, shape, labels, made)
    before = first
    for name, options in (
        ("one", {}),
        ("two.npz", {}),
        ("three.tar", {}),
        ("four", {"kind": "shards", "per_shard": 3}),
        ("five", {}),
    ):
        told.clear()
        write_samples(before, tmp_path / name, tell=told.append, **options)
        assert sum(told) == 7
        before = open_samples(tmp_path / name)
        sampled.assert_same(before, first)
        kind = {"two.npz": "npz", "three.tar": "shards", "four": "shards"}.get(name, "folder")
        assert before.made == {"kind": kind, **made}
    assert len(list((tmp_path / "four").glob("*.tar"))) == 3
    lines = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "five")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == 7
    assert {path.name for path in tmp_path.iterdir()} == {
        "one", "two.npz", "three.tar", "four", "five",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a.npz", "a.tar"])
def test_the_same_samples_make_the_same_file(tmp_path, name):
    for folder in ("one", "two"):
        write_samples(sampled.Held(), tmp_path / folder / name)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_digest_is_that_of_shape_and_bytes():
    samples = sampled.Held(3, (1, 2, 2))
    expected = hashlib.sha256(b"[1, 2, 2]" + samples.pixels.numpy().tobytes()).hexdigest()
    assert samples.digest(1) == samples.digest(256) == expected


def test_the_first_of_them():
    samples = sampled.Held(7)
    first = First(samples, 5)
    one, two = sampled.together(first, 2), sampled.together(samples, 100)
    assert len(first) == 5 and first.shape == samples.shape and first.made == samples.made
    for name in ("pixels", "y", "index", "seed"):
        assert torch.equal(getattr(one, name), getattr(two, name)[:5])
    assert torch.equal(first.seeds(), samples.seed[:5])
    for count in (0, 8):
        with pytest.raises(ValueError, match=r"holds 7 samples, .* a number from 1 to 7"):
            First(samples, count)


@pytest.mark.parametrize("name", ["there", "there.npz", "there.tar"])
def test_nothing_is_overwritten(tmp_path, name):
    write_samples(sampled.Held(), tmp_path / name)
    with pytest.raises(FileExistsError, match="is there already; name a new one"):
        write_samples(sampled.Held(3), tmp_path / name)
    assert open_samples(tmp_path / name).count == 7


@pytest.mark.parametrize("name", ["half", "half.npz", "half.tar", "half shards"])
def test_a_place_has_its_name_when_all_is_there(tmp_path, name):
    class Broken(sampled.Held):
        def batches(self, size):
            yield next(super().batches(2))
            raise OSError(28, "No space left on device")

    kind = "shards" if " " in name else None
    with pytest.raises(OSError, match=r"No space left|Cannot write"):
        write_samples(Broken(), tmp_path / name, kind, per_shard=2)
    assert not list(tmp_path.iterdir())


def test_the_form_of_a_new_place(tmp_path):
    given = {"a": "folder", "a/": "folder", "a.npz": "npz", "a.tar": "shards"}
    assert {name: kind_of(tmp_path / name) for name in given} == given
    assert kind_of(tmp_path / "a", "shards") == kind_of(tmp_path / "a.d", "shards") == "shards"
    for name, kind, said in (
        ("a.zip", None, "tells no form of samples; end it in .npz or .tar"),
        ("a.npz", "folder", "no name for samples of kind folder"),
        ("a.tar", "npz", "no name for samples of kind npz"),
        ("a", "npz", "npz ends in .npz"),
        ("a", "zip", "There is no kind 'zip' of samples; there are folder, npz, shards"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            kind_of(tmp_path / name, kind)
    with pytest.raises(ValueError, match="per_shard is 0; expected 1 or more"):
        write_samples(sampled.Held(), tmp_path / "a", "shards", per_shard=0)


def test_what_holds_no_samples(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.pkl holds no samples; expected a folder of PNG"):
        open_samples(tmp_path / "a.pkl")
    for name in ("b", "b.npz", "b.tar"):
        with pytest.raises(FileNotFoundError, match=r"does not exist .* expected a folder of PNG"):
            open_samples(tmp_path / name)
    with pytest.raises(ValueError, match=r"names no tar file .*; expected \*\.tar"):
        open_samples(str(tmp_path / "b-*.tar"))


def run_folder(path):
    """As `robustguide test` leaves one."""
    path.mkdir()
    (path / "results.json").write_text("{}")
    for side in (4, 8):
        Image.new("L", (side, side)).save(path / f"test_{side}.png")
    return path


def test_figures_of_a_run_are_no_samples(tmp_path):
    run = run_folder(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"run is the folder of a run, and holds no samples.*predi"
    ):
        open_samples(run)
    first = sampled.Held(3)
    write_samples(first, run / "samples", "shards")
    sampled.assert_same(open_samples(run), first)  # as a merge leaves them
    write_samples(sampled.Held(5), run / "more.npz")
    with pytest.raises(
        ValueError, match=r"run that holds 2 sets of samples; give one, such as .*"
    ):
        open_samples(run)


def test_samples_that_a_run_listed_or_archived_are_found(tmp_path):
    for name, inside in (("one", "made"), ("two", "made.npz")):
        run, first = run_folder(tmp_path / name), sampled.Held(3)
        write_samples(first, run / inside)
        sampled.assert_same(open_samples(run), first)
    write_samples(sampled.Held(4), tmp_path / "three")
    (tmp_path / "three/results.json").write_text("{}")  # of a prediction
    assert open_samples(tmp_path / "three").count == 4
