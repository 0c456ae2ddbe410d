"""Files that are none, and what a checkpoint tells without its tensors."""

import hashlib
import json
import sys

import pytest
import torch
from checkpoint_examples import CLASSIFIERS, NAMES, trained
from safetensors.torch import save_file

from robustguide.checkpoints import export, load_classifier, read_metadata, sha256_of
from robustguide.checkpoints.metadata import KEY, REPAIR


@pytest.fixture
def path(tmp_path):
    """A checkpoint of a classifier."""
    file = str(tmp_path / "good.safetensors")
    specification = CLASSIFIERS["sigma"]
    export(
        trained(specification),
        file,
        specification,
        class_names=NAMES,
        shape=[1, 8, 8],
        weights="ema",
        extra={"accuracy": 0.5, "note": [1, None]},
    )
    return file


def test_all_fields_come_back(path):
    found = read_metadata(path)
    assert (found.path, found.kind, found.weights) == (path, "classifier", "ema")
    assert (found.class_names, found.num_classes) == (tuple(NAMES), 5)
    assert (found.shape, found.conditioning) == ((1, 8, 8), "sigma")
    assert found.specification == CLASSIFIERS["sigma"]
    assert found.extra == {"accuracy": 0.5, "note": [1, None]}
    assert found.versions["torch"] == torch.__version__
    assert set(found.versions) == {"torch", "robustguide"}


def test_hash_is_that_of_the_file(path):
    with open(path, "rb") as file:
        assert sha256_of(path) == hashlib.sha256(file.read()).hexdigest()


def test_reading_imports_nothing(path, tmp_path, monkeypatch):
    document = {**json.loads(read_metadata(path).header()[KEY])}
    document["specification"] = {"class_path": "usernets.Net"}
    save_file({"a": torch.zeros(1)}, path, {KEY: json.dumps(document)})
    (tmp_path / "usernets.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_metadata(path).specification == {"class_path": "usernets.Net"}
    assert "usernets" not in sys.modules


def test_a_missing_file_tells_what_is_there(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b.safetensors does not exist") as caught:
        load_classifier(str(tmp_path / "b.safetensors"))
    assert "holds good.safetensors" in str(caught.value) and REPAIR in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"is a folder .*holds good.safetensors"):
        load_classifier(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no \.safetensors file"):
        load_classifier(str(tmp_path / "nowhere" / "b.safetensors"))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 500, -1])
def test_truncated_files_are_told(path, length):
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[:length])
    with pytest.raises(ValueError, match=r"it has \d+ bytes and is damaged, incomplete"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "it is a web page"),
        (b"\n  <html>" + b" " * 1000, "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x80\x02}q\x00.", "pickled or trainer checkpoint"),
        (b"hello, this is no checkpoint", "28 bytes and is damaged"),
    ],
)
def test_impostors_are_told_apart(tmp_path, content, message):
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_classifier(str(file))


class Harm:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["last.ckpt", "a.pt", "a.safetensors"])
def test_trainer_checkpoints_are_not_unpickled(tmp_path, name):
    torch.save({"state_dict": Harm(str(tmp_path / "harm"))}, tmp_path / name)
    with pytest.raises(
        ValueError, match=r"no card has exactly one file .* give the \.safetensors file"
    ):
        load_classifier(str(tmp_path / name))
    assert not (tmp_path / "harm").exists()


def test_tensors_without_description_are_told(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not say what network .* load_weights"):
        load_classifier(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"has format 2, this version reads format 1; install .*'torch'"),
        ({"format": None}, "has format None"),
        ({"shape": 3, "kind": None}, "lacks kind, shape"),
        ({"num_classes": "ten"}, "lacks num_classes"),
        ({"specification": [1]}, "lacks specification"),
    ],
)
def test_other_documents_are_refused(path, change, message):
    document = json.loads(read_metadata(path).header()[KEY]) | change
    save_file({"a": torch.zeros(1)}, path, {KEY: json.dumps(document)})
    with pytest.raises(ValueError, match=message):
        load_classifier(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"kind": "classifier"}', "[" * 100_000])
def test_unreadable_documents_are_refused(tmp_path, text):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {KEY: text})
    with pytest.raises(ValueError, match=r"The metadata of .* cannot be read"):
        read_metadata(tmp_path / "a.safetensors")
