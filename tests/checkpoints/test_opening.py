"""Official files open as they are, to the bit."""

import argparse
import json
import pickle
from pathlib import Path

import golden_files
import numpy as np
import pytest
import snapshot_files as files
import torch
from safetensors.torch import load_file, save_file

from robustguide.checkpoints import opening
from robustguide.checkpoints.opening import open_tensors

GOLDENS = golden_files.FOLDER
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7)}


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def write(tmp_path):
    """Writes a file and gives its path."""

    def write(content, name="weights.bin"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", ["edm_pickle", "edm2_pickle"])
@pytest.mark.parametrize("part", ["ema", None])
def test_snapshots_hold_the_recorded_tensors(name, part):
    description, tensors = golden_files.load(name)
    found = open_tensors(GOLDENS / f"{name}.pkl", part)
    wanted = {k.removeprefix("model."): x for k, x in tensors.items() if k.startswith("model.")}
    same({key: found.tensors[key] for key in wanted}, wanted)
    assert len(found.tensors) == len(wanted)
    assert found.path == str(GOLDENS / f"{name}.pkl")
    constructor = description["constructor"]
    assert found.recorded["ema"]["init_kwargs"] == constructor
    assert found.recorded["ema"]["class_name"] == description.get("precond", "Precond")
    assert found.recorded["ema"]["attributes"]["label_dim"] == constructor["label_dim"]
    assert found.recorded["ema"]["attributes"]["sigma_data"] == 0.5
    keys = description["pickle"]["top_level_keys"]
    assert sorted(found.recorded) == keys
    if "encoder" in keys:
        assert found.recorded["encoder"]["class_name"] == "StandardRGBEncoder"


@pytest.mark.parametrize("name", ["robustness_cifar_style", "robustness_imagenet_style"])
@pytest.mark.parametrize("part", ["model", None])
def test_files_of_robustness_hold_what_torch_loads(name, part):
    path = GOLDENS / f"{name}.pt"
    description = json.loads(path.with_suffix(".json").read_text())
    found = open_tensors(path, part)
    same(found.tensors, torch.load(path, weights_only=True)["model"])
    assert len(found.tensors) == description["checkpoint"]["num_tensors"]
    assert found.tensors["module.normalizer.new_mean"].flatten().tolist() == description["mean"]
    others = set(description["checkpoint"]["top_level_keys"]) - {"model"}
    assert set(found.recorded) == others
    assert found.recorded["epoch"] == torch.load(path, weights_only=True)["epoch"]


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_torch_refuses_is_built_here_all_the_same(is_zip, tmp_path):
    """A training script of DiT keeps its arguments as an object of a class."""
    arguments = argparse.Namespace(image_size=256, model="DiT-XL/2")
    frozen = torch.nn.Parameter(torch.rand(3, 4))
    view, half = frozen.detach().t()[1:, :2], STATE["a.weight"].half()
    ema = {**STATE, "tied": frozen, "view": view, "half": half}
    whole = {"model": STATE, "ema": ema, "opt": {"state": {0: STATE}}, "args": arguments}
    path = tmp_path / "0050000.pt"
    torch.save(whole, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found = open_tensors(path, "ema")
    same(found.tensors, {name: x.detach() for name, x in ema.items()})
    attributes = found.recorded["args"]["attributes"]
    assert attributes == {"image_size": 256, "model": "DiT-XL/2"}
    assert found.recorded["args"]["class_name"] == "argparse.Namespace"
    # Tied and viewed tensors share their memory, as in the network that was saved.
    assert found.tensors["view"].data_ptr() == found.tensors["tied"].data_ptr() + 4
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("dtype", opening.DTYPES)
def test_our_own_building_equals_torch(is_zip, dtype, tmp_path, monkeypatch):
    values = {"x": torch.arange(-6, 6).reshape(3, 4).to(dtype).t(), "none": torch.empty(0, 3)}
    path = tmp_path / "weights.pt"
    torch.save(values, path, _use_new_zipfile_serialization=is_zip)
    same(open_tensors(path).tensors, values)
    monkeypatch.setattr(opening, "_by_torch", lambda *_: None)
    found = open_tensors(path)
    same(found.tensors, values)
    assert found.tensors["x"].stride() == values["x"].stride()


def test_torch_is_never_asked_to_run_code(tmp_path, monkeypatch):
    asked = []
    load = torch.load

    def spy(*args, **options):
        asked.append(options["weights_only"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", spy)
    for is_zip in (True, False):
        torch.save(STATE, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
        same(open_tensors(tmp_path / "a.pt").tensors, STATE)
    open_tensors(GOLDENS / "edm_pickle.pkl")
    assert asked == [True, True]


@pytest.mark.parametrize(
    "other", [{}, [], {"a.weight": torch.ones(6), "a.count": torch.tensor(7)}]
)
def test_a_file_that_torch_reads_otherwise_is_refused(other, write, monkeypatch):
    path = write(files.torch_file(STATE))
    monkeypatch.setattr(opening, "_by_torch", lambda *_: other)
    with pytest.raises(ValueError, match="torch reads other tensors in it than are described"):
        open_tensors(path)


def test_safetensors_open_with_their_metadata(tmp_path):
    save_file(STATE, tmp_path / "a.bin", {"licence": "MIT"})
    found = open_tensors(tmp_path / "a.bin")
    same(found.tensors, load_file(tmp_path / "a.bin"))
    assert found.recorded == {"licence": "MIT"}


def test_opened_tensors_can_be_changed_and_the_file_stays(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    save_file(STATE, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        before = path.read_bytes()
        open_tensors(path).tensors["a.weight"].zero_()
        assert path.read_bytes() == before
        assert open_tensors(path).tensors["a.weight"].sum() == 15


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_snapshots_by_any_protocol(protocol, write):
    inner = files.module("UNet", {"gain": torch.tensor(2.0)}, hidden=3)
    ema = files.module(
        "Precond",
        {"weight": torch.rand(2, 3), "bias": None},
        {"freqs": torch.rand(4), "scratch": torch.rand(9)},
        {"unet": inner, "act": None},
        passing=["scratch"],
        img_resolution=64,
    )
    encoder = files.Persistent(
        "StabilityVAEEncoder",
        {"vae_name": "sd-vae", "scale": np.float32([0.5, 0.25]), "batch_size": 8, "_vae": None,
         "_init_args": (), "_init_kwargs": files.EasyDict(raw_std=[4.17, 4.62])},
    )  # fmt: skip
    content = files.snapshot(files.EasyDict(ema=ema, encoder=encoder, kimg=np.int64(7)), protocol)
    found = open_tensors(write(content))
    state = ema.meta["state"]
    same(
        found.tensors,
        {
            "weight": state["_parameters"]["weight"].detach(),
            "freqs": state["_buffers"]["freqs"],
            "unet.gain": torch.tensor(2.0),
        },
    )
    assert found.recorded == {
        "ema": {
            "class_name": "Precond", "init_args": [], "init_kwargs": {"img_resolution": 64},
            "attributes": {"training": False, "img_resolution": 64},
        },
        "encoder": {
            "class_name": "StabilityVAEEncoder", "init_args": [],
            "init_kwargs": {"raw_std": [4.17, 4.62]},
            "attributes": {"vae_name": "sd-vae", "scale": [0.5, 0.25], "batch_size": 8},
        },
        "kimg": 7,
    }  # fmt: skip


def test_a_snapshot_may_be_one_object_or_a_state_dict(write):
    ema = files.module("Precond", {"weight": torch.ones(2)}, img_resolution=8)
    found = open_tensors(write(files.snapshot(ema)))
    same(found.tensors, {"weight": torch.ones(2)})
    assert found.recorded[""]["init_kwargs"] == {"img_resolution": 8}
    same(open_tensors(write(files.snapshot(STATE))).tensors, STATE)
    arrays = {"w": np.ones((2, 3), np.float32), "step": np.float64(3)}
    found = open_tensors(write(pickle.dumps(arrays, 4)))
    same(found.tensors, {"w": torch.ones(2, 3)})
    assert found.recorded == {"step": 3.0}


def test_modules_of_torch_inside_a_snapshot_stay_records(write):
    """As the ModuleDict of the networks; its class is named, and not built."""
    layers = torch.nn.ModuleDict({"norm": torch.nn.BatchNorm2d(2)})
    ema = files.module("Net", modules={"layers": layers})
    found = open_tensors(write(files.snapshot({"ema": ema})))
    same(found.tensors, {f"layers.{name}": x.detach() for name, x in layers.state_dict().items()})


def test_a_function_that_dill_wrote_out_is_left_apart(write):
    """Files of `robustness` from 2019 hold one beside the weights."""
    code = files.called("dill._dill._load_type", files.text("CodeType"))
    code += b"(" + files.blob(b"abc") + b"tR"
    globe = files.named("__builtin__.__main__")
    function = files.called("dill._dill._create_function", code, globe, files.text("f"))
    rest = files.text("args") + files.entry("lr", function)
    numbers = torch.tensor([1.5, -2.0])
    raw = numbers.numpy().tobytes()

    def content(is_old):
        model = files.entry("module.w", files.tensor(files.stored(is_old=is_old)))
        return files.whole(b"}(" + files.text("model") + model + rest + b"u")

    new = write(files.archive(content(False), {"0": raw}), "new.pt")
    old = write(files.old_stream(content(True), {"0": (2, raw)}), "old.pt")
    same(open_tensors(new).tensors, {"module.w": numbers})
    same(open_tensors(old).tensors, {"module.w": numbers})


def test_parts(write, tmp_path):
    two = write(files.torch_file({"ema": STATE, "model": {"b": torch.ones(2)}, "step": 3}))
    with pytest.raises(ValueError, match=r"holds 2 networks. Say which part .*'ema', 'model'"):
        open_tensors(two)
    with pytest.raises(ValueError, match=r"no tensors in a part 'emma'. .*: 'ema', 'model'"):
        open_tensors(two, "emma")
    same(open_tensors(two, "model").tensors, {"b": torch.ones(2)})
    assert open_tensors(two, "model").recorded == {"step": 3}

    flat = write(files.torch_file({**STATE, "version": 2}), "flat.pt")
    same(open_tensors(flat).tensors, STATE)
    assert open_tensors(flat).recorded == {"version": 2}
    with pytest.raises(ValueError, match=r"no tensors in a part 'ema'\. Leave the part out"):
        open_tensors(flat, "ema")

    loss = {"state_dict": STATE, "best": torch.tensor(0.5), "optimizer": {"state": {0: STATE}}}
    found = open_tensors(write(files.torch_file(loss), "loss.pt"))
    same(found.tensors, STATE)
    assert found.recorded["best"] == 0.5

    mixed = write(files.torch_file({"head": torch.ones(3), "model": STATE}), "mixed.pt")
    with pytest.raises(ValueError, match="Say which part to take: 'model'"):
        open_tensors(mixed)
    for nothing in ([STATE], {}, torch.ones(3), "text", {"a": {"b": {"c": torch.ones(1)}}}):
        path = write(files.torch_file(nothing), "nothing.pt")
        with pytest.raises(ValueError, match="it holds no tensors by name"):
            open_tensors(path)
    save_file(STATE, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"it has no part 'ema'\. Leave the part out"):
        open_tensors(tmp_path / "a.safetensors", "ema")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.pt does not exist \(from .*\)"):
        open_tensors(tmp_path / "a.pt")


def test_a_path_may_be_text(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    found = open_tensors(str(tmp_path / "a.safetensors"))
    assert Path(found.path) == tmp_path / "a.safetensors"
