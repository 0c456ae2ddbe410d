"""A file that cannot be loaded is never written, and never half written."""

import os
import resource
import signal

import pytest
import torch
from checkpoint_examples import (
    CLASSIFIERS,
    DENOISERS,
    ENCODER,
    NAMES,
    assert_same,
    inputs,
    spec,
    trained,
)
from safetensors.torch import load_file
from torch import nn

from robustguide.checkpoints import (
    UntrustedError,
    export,
    load_classifier,
    portable,
    read_metadata,
    verify,
)

TIMED = CLASSIFIERS["timed"]
SAID = {"class_names": NAMES, "shape": [1, 8, 8], "weights": "raw"}


@pytest.fixture
def limited():
    """A disk that takes 100 kB a file, as a full one does after some of the bytes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(tmp_path, limited):
    path = tmp_path / "runs" / "a.safetensors"
    with pytest.raises(OSError, match=r"a.safetensors could not be written.*free space there"):
        export(trained(TIMED), path, TIMED, **SAID)
    assert os.listdir(path.parent) == []


def test_a_full_disk_keeps_the_older_file(tmp_path, limited):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"older")
    with pytest.raises(OSError, match="File too large"):
        export(trained(TIMED), path, TIMED, **SAID)
    assert os.listdir(tmp_path) == ["a.safetensors"] and path.read_bytes() == b"older"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(trained(TIMED), tmp_path / "a.safetensors", TIMED, **SAID)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.safetensors", tmp_path / "file" / "b" / "a.safetensors"):
        with pytest.raises(OSError, match=r"a.safetensors could not be written.*another folder"):
            export(trained(TIMED), path, TIMED, **SAID)


def test_files_have_the_permissions_of_others(tmp_path):
    old = os.umask(0o027)
    try:
        export(trained(TIMED), tmp_path / "new" / "a.safetensors", TIMED, **SAID)
    finally:
        os.umask(old)
    assert (tmp_path / "new" / "a.safetensors").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path / "new") == ["a.safetensors"]


def test_what_was_written_is_returned(tmp_path):
    written = export(trained(TIMED), tmp_path / "a.safetensors", TIMED, **SAID)
    assert written == read_metadata(tmp_path / "a.safetensors")


def changed(**arguments):
    net = spec(ENCODER["class_path"], **(ENCODER["init_args"] | arguments))
    return spec("robustguide.classifiers.SigmaConditioned", net=net, num_classes=5)


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        (
            changed(model_channels=32),
            r"time_embed.0.weight: specification \[128, 32\], module \[64",
        ),
        (changed(pool="adaptive"), r"out.2.positional_embedding: specification has none"),
        (TIMED, "it builds a Timed, not a SigmaConditioned"),
        (changed(image_size=9), "cannot be built"),
        (spec("torch.nn.Linear"), "--trust torch"),
        (spec("robustguide.classifiers.OffTheShelf", net=nn.Linear(1, 1)), "holds a Linear"),
        (spec("robustguide.noise.linear_levels"), "DiscreteLevels, not a module"),
    ],
)
def test_a_wrong_specification_is_not_written(tmp_path, specification, message):
    module = trained(changed())
    with pytest.raises(ValueError, match=message):
        export(module, tmp_path / "a.safetensors", specification, **SAID)
    with pytest.raises(ValueError, match=message):
        verify(module, specification)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"class_names": NAMES[:4]}, "4 class names were given for 5 classes"),
        ({"shape": [1, 8]}, r"got \[1, 8\]"),
        ({"shape": [3, 8, 8]}, r"got \[3, 8, 8\]; it says \[1, 8, 8\] itself"),
        ({"weights": "best"}, "must be 'ema' or 'raw', got 'best'"),
        ({"extra": {"tensor": torch.zeros(1)}}, "Tensor is not JSON serializable"),
    ],
)
def test_a_wrong_description_is_not_written(tmp_path, said, message):
    specification = DENOISERS["edm"]
    with pytest.raises(ValueError, match=message):
        export(trained(specification), tmp_path / "a.safetensors", specification, **(SAID | said))
    assert os.listdir(tmp_path) == []


def test_only_classifiers_and_denoisers_are_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="got a EncoderUNet; wrap it"):
        export(trained(ENCODER), tmp_path / "a.safetensors", ENCODER, **SAID)


def test_tied_tensors_and_views_are_written_once_a_name(tmp_path):
    module = trained(TIMED)
    blocks = module.net.time_embed
    blocks[2].bias = blocks[0].bias
    whole = torch.randn(3, *blocks[0].weight.T.shape)
    blocks[0].weight = nn.Parameter(whole[1].T)  # neither contiguous nor all of its storage
    path = tmp_path / "a.safetensors"
    export(module, path, TIMED, **SAID)
    tensors = load_file(path)
    assert torch.equal(tensors["net.time_embed.2.bias"], tensors["net.time_embed.0.bias"])
    assert torch.equal(tensors["net.time_embed.0.weight"], whole[1].T)
    loaded = load_classifier(str(path))
    assert_same(loaded, module, *inputs(TIMED))


def test_sources_of_weights_are_left_out():
    net = spec(
        "torchvision.models.get_model", name="googlenet", weights="DEFAULT", aux_logits=False
    )
    timm = {"class_path": "timm.create_model", "dict_kwargs": {"pretrained": True, "in_chans": 1}}
    own = spec("usernets.Net", pretrained=True)
    described = portable(spec("a.Outer", nets=(net, timm), own=own))
    assert described == spec(
        "a.Outer",
        nets=[
            spec(net["class_path"], name="googlenet", aux_logits=False, transform_input=True),
            spec("timm.create_model", in_chans=1),
        ],
        own=own,
    )


def test_a_network_around_a_loaded_one_needs_no_other_file(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    plain, said = CLASSIFIERS["torchvision"], SAID | {"shape": [3, 8, 8]}
    export(trained(plain), first, plain, **said)
    arguments = CLASSIFIERS["nested"]["init_args"]
    loader = spec("robustguide.checkpoints.load_classifier", path=str(first), trust=["torch"])
    given = spec(CLASSIFIERS["nested"]["class_path"], **(arguments | {"classifier": loader}))
    module = trained(CLASSIFIERS["nested"])
    export(module, second, given, **said)
    first.unlink()
    loaded = load_classifier(str(second))
    assert torch.equal(loaded(*inputs(plain)), module(*inputs(plain)))


def test_the_trust_of_a_users_own_loader_counts_for_its_file(tmp_path, monkeypatch):
    (tmp_path / "ownnets.py").write_text(
        "from robustguide.classifiers import SigmaConditioned\n"
        "class Own(SigmaConditioned):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = spec("ownnets.Own", **changed()["init_args"])
    module = trained(own, ["ownnets"])
    path = str(tmp_path / "a.safetensors")
    export(module, path, own, **SAID, trust=["ownnets"])
    loader = spec("robustguide.checkpoints.load_classifier", path=path)
    with pytest.raises(UntrustedError):
        verify(module, loader)
    loader["init_args"]["trust"] = ["ownnets"]
    assert verify(module, loader)["class_path"] == "ownnets.Own"
