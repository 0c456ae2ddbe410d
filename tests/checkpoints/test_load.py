"""What was exported comes back as it was, and nothing else comes back at all."""

import json
import random
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from checkpoint_examples import (
    CLASSIFIERS,
    DENOISERS,
    ENCODER,
    LEVELS,
    NAMES,
    assert_same,
    inputs,
    shape_of,
    spec,
    trained,
)
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from torch import nn

from robustguide.checkpoints import (
    UntrustedError,
    export,
    load_classifier,
    load_denoiser,
    load_weights,
    read_metadata,
    trusting,
)
from robustguide.checkpoints.metadata import KEY
from robustguide.interfaces import Classifier, Denoiser


def exported(path, specification, **changes):
    module = trained(specification)
    arguments = {"class_names": NAMES, "shape": shape_of(specification), "weights": "raw"}
    export(module, str(path), specification, **(arguments | changes))
    return module


def rewritten(path, tensors=None, **document):
    """Changes tensors or the metadata of a file, as somebody with bad intentions could."""
    old = load_file(path)
    metadata = json.loads(read_header(path)[KEY]) | document
    save_file(old if tensors is None else tensors(old), path, {KEY: json.dumps(metadata)})


def read_header(path):
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_come_back(tmp_path, name):
    path = tmp_path / "a.safetensors"
    module = exported(path, CLASSIFIERS[name])
    loaded = load_classifier(str(path))
    assert isinstance(loaded, Classifier) and type(loaded) is type(module)
    arguments = inputs(CLASSIFIERS[name])
    assert_same(loaded, module, *arguments)
    expected = {"timed": "t", "nested": "t", "sigma": "sigma"}.get(name, "none")
    assert loaded.metadata.conditioning == expected
    assert loaded.metadata == read_metadata(path)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_come_back(tmp_path, name):
    path = tmp_path / "a.safetensors"
    module = exported(path, DENOISERS[name])
    loaded = load_denoiser(str(path))
    assert isinstance(loaded, Denoiser) and type(loaded) is type(module)
    arguments = (*inputs(DENOISERS[name]), torch.tensor([1, 5]))
    ours, theirs = loaded.predict(*arguments), module.predict(*arguments)
    assert torch.equal(ours.denoised, theirs.denoised)
    assert (name == "eps") == (ours.fraction is not None)
    assert name != "eps" or torch.equal(ours.fraction, theirs.fraction)


def test_loaded_modules_are_frozen_and_cost_no_random_numbers(tmp_path, monkeypatch):
    # the checker of annotations looks at a random item of a list
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    path = tmp_path / "a.safetensors"
    exported(path, CLASSIFIERS["torchvision"])
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(4), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    loaded = load_classifier(str(path))
    assert torch.equal(torch.rand(4), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {value.device.type for value in loaded.state_dict().values()} == {"cpu"}


def test_metas_and_other_default_devices_do_not_leak_in(tmp_path):
    path = tmp_path / "a.safetensors"
    module = exported(path, CLASSIFIERS["torchvision"])
    with torch.device("meta"):
        loaded = load_classifier(str(path))
    arguments = inputs(CLASSIFIERS["torchvision"])
    assert_same(loaded, module, *arguments)
    assert load_classifier(str(path), device="meta").mean.is_meta


def test_the_other_kind_is_refused(tmp_path):
    exported(tmp_path / "c.safetensors", CLASSIFIERS["sigma"])
    exported(tmp_path / "d.safetensors", DENOISERS["edm"])
    with pytest.raises(ValueError, match=r"d.safetensors holds a denoiser.*load_denoiser"):
        load_classifier(str(tmp_path / "d.safetensors"))
    with pytest.raises(ValueError, match=r"c.safetensors holds a classifier.*load_classifier"):
        load_denoiser(str(tmp_path / "c.safetensors"))
    rewritten(tmp_path / "c.safetensors", kind="denoiser")
    with pytest.raises(ValueError, match=r"promises a denoiser of 5 .* builds a SigmaConditioned"):
        load_denoiser(str(tmp_path / "c.safetensors"))


@pytest.mark.parametrize("class_path", ["os.system", "usernets.Net", "torch.load"])
def test_a_files_class_path_is_judged(tmp_path, class_path):
    path = tmp_path / "a.safetensors"
    exported(path, CLASSIFIERS["sigma"])
    evil = spec(class_path, command=f"touch {tmp_path / 'harm'}")
    rewritten(path, specification=evil)
    with pytest.raises(UntrustedError, match=f"'{class_path}' was refused"):
        load_classifier(str(path))
    nested = json.loads(json.dumps(CLASSIFIERS["sigma"]))
    nested["init_args"]["net"]["init_args"]["channel_mult"] = [1, {"x": evil}]
    rewritten(path, specification=nested)
    with pytest.raises(UntrustedError, match=r"at 'net.channel_mult.1.x' was refused"):
        load_classifier(str(path))
    assert not (tmp_path / "harm").exists()


def test_a_file_cannot_load_another_file(tmp_path):
    path = tmp_path / "a.safetensors"
    exported(path, CLASSIFIERS["sigma"])
    rewritten(path, specification=spec("robustguide.checkpoints.load_classifier", path=str(path)))
    with pytest.raises(UntrustedError, match="would load other files"):
        load_classifier(str(path))
    rewritten(path, specification=spec("robustguide.checkpoints.load_classifier"))
    with pytest.raises(UntrustedError, match="refused and not called"):
        load_classifier(str(path))


def test_a_users_own_package_needs_trust(tmp_path, monkeypatch):
    """A classifier that wraps another, as a calibrated one does."""
    (tmp_path / "calibrations.py").write_text(
        "import torch\n"
        "from robustguide.interfaces import Classifier\n"
        "class Warm(Classifier):\n"
        "    def __init__(self, classifier, temperature):\n"
        "        super().__init__()\n"
        "        self.classifier = classifier\n"
        "        self.num_classes = classifier.num_classes\n"
        "        values = torch.tensor(temperature)\n"
        "        assert values.sum().item() > 0\n"  # so it cannot be built on the meta device
        "        self.register_buffer('temperature', values)\n"
        "    def forward(self, x, sigma):\n"
        "        return self.classifier(x, sigma) / self.temperature[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    warm = spec("calibrations.Warm", classifier=CLASSIFIERS["timed"], temperature=[2.0, 3.0])
    path = str(tmp_path / "a.safetensors")
    arguments = {"class_names": NAMES, "shape": [1, 8, 8], "weights": "raw"}
    try:
        module = trained(warm, ["calibrations"])
        with pytest.raises(UntrustedError, match="--trust calibrations"):
            export(module, path, warm, **arguments)
        export(module, path, warm, **arguments, trust=["calibrations"])
        with pytest.raises(UntrustedError, match="--trust calibrations"):
            load_classifier(path)
        with trusting(["calibrations"]):
            loaded = [load_classifier(path), load_classifier(path, trust=["another"])]
        for each in (*loaded, load_classifier(path, trust=["calibrations"])):
            assert_same(each, module, *inputs(warm))
    finally:
        sys.modules.pop("calibrations", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {f"{k}x" if k == "net.time_embed.0.bias" else k: v for k, v in t.items()},
         r"net.time_embed.0.bias: file has none, specification \[64\]; "
         r"net.time_embed.0.biasx: file \[64\], specification has none"),
        (lambda t: t | {"net.time_embed.0.bias": torch.zeros(3)},
         r"net.time_embed.0.bias: file \[3\], specification \[64\]\. It was written with"),
        (lambda t: {k: v for k, v in t.items() if "out." not in k}, r"; and \d+ more"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    exported(path, CLASSIFIERS["timed"])
    rewritten(path, change)
    with pytest.raises(ValueError, match=message):
        load_classifier(str(path))


def test_a_file_cannot_ask_for_more_memory_than_it_fills(tmp_path):
    path = tmp_path / "a.safetensors"
    exported(path, CLASSIFIERS["sigma"])
    huge = json.loads(json.dumps(CLASSIFIERS["sigma"]))
    huge["init_args"]["net"]["init_args"]["model_channels"] = 2**20
    rewritten(path, specification=huge)
    with pytest.raises(ValueError, match=r"specification \[4194304, 1048576\]"):
        load_classifier(str(path))


def test_weights_fill_a_module_of_the_users(tmp_path):
    path = tmp_path / "a.safetensors"
    source = exported(path, CLASSIFIERS["timed"])
    target = trained(CLASSIFIERS["timed"]).train()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    load_weights(target, str(path), CLASSIFIERS["timed"])
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
    assert target.training and all(each.requires_grad for each in target.parameters())


def test_weights_that_do_not_fit_tell_the_arguments_that_differ(tmp_path):
    path = tmp_path / "a.safetensors"
    exported(path, CLASSIFIERS["timed"])
    net = spec(ENCODER["class_path"], **(ENCODER["init_args"] | {"model_channels": 32}))
    given = spec("robustguide.classifiers.Timed", net=net, levels=LEVELS, num_classes=5)
    module = trained(given)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"net.model_channels: file 16, given 32\.") as caught:
        load_weights(module, str(path), given)
    assert len(str(caught.value)) < 700
    with pytest.raises(
        ValueError, match=r"time_embed.0.weight: file \[64, 16\], module \[128, 32"
    ):
        load_weights(module, str(path))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_weights_need_no_description(tmp_path):
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "a.safetensors")
    layer = nn.Linear(2, 2)
    load_weights(layer, str(tmp_path / "a.safetensors"))
    assert torch.equal(layer.weight, torch.ones(2, 2))
    given = spec("robustguide.nets.UNet")
    with pytest.raises(ValueError, match=r"weight: file \[2, 2\], module \[3, 2\]"):
        load_weights(nn.Linear(2, 3), str(tmp_path / "a.safetensors"), given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer releases: instantiate
@pytest.mark.parametrize("name", ["timed", "torchvision", "timm", "nested"])
def test_the_parsers_configuration_is_a_specification(tmp_path, name):
    """From YAML to a module, its checkpoint, and back through YAML."""
    parser = ArgumentParser()
    parser.add_argument("--classifier", type=Classifier)
    config = parser.parse_object({"classifier": CLASSIFIERS[name]})
    module = parser.instantiate_classes(config).classifier.eval()
    path = str(tmp_path / "a.safetensors")
    specification = config.classifier.as_dict()
    said = {"class_names": NAMES, "shape": shape_of(specification), "weights": "raw"}
    export(module, path, specification, **said)
    loader = spec("robustguide.checkpoints.load_classifier", path=path)
    loaded = parser.instantiate_classes(parser.parse_object({"classifier": loader})).classifier
    assert_same(loaded, module, *inputs(CLASSIFIERS[name]))
