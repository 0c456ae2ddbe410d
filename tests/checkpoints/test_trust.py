"""What a file may name, and what is refused before it is imported."""

import importlib
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from robustguide.checkpoints import UntrustedError, build, check, trusting
from robustguide.noise import DiscreteLevels

CODE = """
import pathlib
pathlib.Path(__file__).with_suffix(".imported").touch()
from os import system
from torch.nn import Linear
from torch import nn
class Net(nn.Module):
    def __init__(self, width, inner=None):
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.inner = inner
class Plain:
    pass
def make(width):
    return Net(width)
"""


def spec(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a user, and the file that it leaves when it is imported."""
    (tmp_path / "usernets.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "usernets.imported"
    sys.modules.pop("usernets", None)


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.nn.Linear",
        "torchvisionary.Net",
        "robustguide",
        "eval",
        "",
        ".robustguide.nets.UNet",
        "..os.system",
        "robustguide..nets.UNet",
        "robustguide.nets.UNet.__init__.__globals__",
        "robustguide.__builtins__.eval",
        "timm.models._factory.create_model",
        "robustguide.nets.UNet()",
        "robustguide/nets.UNet",
        "os;robustguide.nets",
    ],
)
def test_paths_outside_the_packages_are_refused_by_name(class_path):
    with pytest.raises(UntrustedError, match="refused and not imported; allowed are"):
        check(spec(class_path))
    with pytest.raises(UntrustedError, match="refused"):
        build(spec("robustguide.classifiers.OffTheShelf", net=spec(class_path), num_classes=2))


@pytest.mark.parametrize(
    "class_path",
    [
        "torchvision.os.system",
        "torchvision.models.resnet.nn.Linear",
        "robustguide.checkpoints.trust.importlib.import_module",
        "robustguide.nets.UNet.from_pretrained",
        "robustguide.nets.NoSuchNet",
        "open_clip.no_such_model",
    ],
)
def test_attributes_of_trusted_modules_are_no_way_out(class_path):
    with pytest.raises(ValueError, match="cannot be imported"):
        build(spec(class_path))


@pytest.mark.parametrize(
    "class_path",
    [
        "torchvision.models.resnet.partial",
        "torchvision.models.resnet.Tensor",
        "torchvision.models.swin_transformer.nn",
        "torchvision.models.get_weight",
        "torchvision.models.list_models",
        "torchvision.io.read_file",
        "torchvision.datasets.utils.download_url",
        "torchvision.models.detection.fasterrcnn_resnet50_fpn",
        "timm.models.load_checkpoint",
        "timm.models.resnet.resnet18",
        "timm.list_models",
        "robustguide.checkpoints.load_classifier",
        "robustguide.checkpoints.load.load_denoiser",
        "robustguide.checkpoints.export",
        "robustguide.checkpoints.trusting",
        "robustguide.noise.RhoGrid",
        "robustguide.nets.adm.zeroed",
    ],
)
def test_what_is_no_module_and_no_listed_builder_is_not_called(class_path):
    with pytest.raises(UntrustedError, match="refused and not called"):
        build(spec(class_path))


def test_foreign_package_is_not_imported(package):
    foreign = spec("usernets.Net", width=2)
    places = [
        foreign,
        spec("robustguide.classifiers.OffTheShelf", net=foreign, num_classes=2),
        spec("robustguide.nets.UNet", channel_mult=[1, {"deep": [foreign]}]),
        {"class_path": "timm.create_model", "dict_kwargs": {"head": foreign}},
    ]
    for place in places:
        with pytest.raises(UntrustedError, match=r"'usernets.Net'.*--trust usernets"):
            build(place)
    assert not package.exists()
    assert "usernets" not in sys.modules
    build(foreign, trusted=["usernets"])
    assert package.exists()  # so the file would have told


def test_nothing_is_imported_before_all_is_judged(monkeypatch):
    name = "torchvision.models.quantization"
    monkeypatch.delitem(sys.modules, name, raising=False)
    nested = spec(
        "torchvision.models.quantization.resnet.QuantizableResNet", block=spec("os.system")
    )
    with pytest.raises(UntrustedError, match=r"'os.system' at 'block'"):
        build(nested)
    assert name not in sys.modules


def test_users_package_is_allowed_by_argument_or_context(package):
    inner = spec("usernets.Net", width=3)
    net = build(spec("usernets.Net", width=2, inner=inner), trusted=["usernets"])
    assert (net.layer.in_features, net.inner.layer.in_features) == (2, 3)
    with trusting(["mynets"]), trusting(["usernets"]):
        assert isinstance(build(inner), nn.Module)
        assert set(check(inner)) >= {"mynets", "usernets", "robustguide"}
    with pytest.raises(UntrustedError):
        build(inner)


@pytest.mark.parametrize("name", ["Plain", "make", "system", "Linear"])
def test_trusted_package_still_gives_modules_only(package, name):
    with pytest.raises(UntrustedError, match=r"subclasses of torch\.nn\.Module"):
        build(spec(f"usernets.{name}"), trusted=["usernets"])


@pytest.mark.parametrize("name", ["", "a b", "my-nets", "__main__", ".", "os.path._x"])
def test_trust_is_given_by_dotted_names(name):
    with pytest.raises(ValueError, match="Trusted packages are dotted names"):
        check(spec("robustguide.nets.UNet"), trusted=[name])


@pytest.mark.parametrize(
    "refused",
    [
        spec("torchvision.models.resnet18", weights="DEFAULT"),
        spec("torchvision.models.get_model", name="resnet18", weights=True),
        spec("torchvision.models.get_model", name="resnet18", weights_backbone="DEFAULT"),
        spec("timm.create_model", model_name="resnet18", pretrained=True),
        spec("timm.create_model", model_name="resnet18", checkpoint_path="/tmp/a.pth"),
        spec("timm.create_model", model_name="resnet18", cache_dir="here"),
        spec("timm.create_model", model_name="resnet18", pretrained_cfg={"file": "a.pth"}),
        spec("timm.create_model", model_name="resnet18", pretrained_cfg_overlay={"url": "a"}),
        spec("timm.create_model", model_name="hf-hub:someone/resnet18"),
        spec("timm.create_model", model_name="local-dir:/tmp/net"),
        spec("timm.create_model", model_name="someone/resnet18"),
        {"class_path": "timm.create_model", "dict_kwargs": {"pretrained": True}},
        spec("open_clip.create_model", model_name="ViT-B-32", pretrained="openai"),
        spec("open_clip.create_model", model_name="RN50", text_cfg={"hf_model_name": "a"}),
        spec("open_clip.hf_model.HFTextEncoder", model_name_or_path="someone"),
        spec("diffusers.UNet2DModel", down_block_types=["https://example.org/a.py"]),
    ],
    ids=lambda refused: str(refused)[:80],
)
def test_arguments_that_load_other_files_are_refused(refused):
    with pytest.raises(UntrustedError, match="would load other files"):
        check(spec("robustguide.classifiers.OffTheShelf", net=[refused], num_classes=2))


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fcn_resnet50", "quantized_resnet18"])
def test_torchvision_networks_with_weights_by_default_are_refused(name):
    with pytest.raises(UntrustedError, match="list_models"):
        build(spec("torchvision.models.get_model", name=name))


def test_open_clip_towers_from_a_hub_are_refused():
    """By name, and without asking the hub; other towers are the library's own."""
    library = importlib.import_module("open_clip")
    with pytest.raises(UntrustedError, match="hf_model_name='roberta-base'"):
        build(spec("open_clip.create_model", model_name="roberta-ViT-B-32"))
    built = build(spec("open_clip.create_model", model_name="ViT-S-32-alt", pretrained=None))
    assert isinstance(built, library.CLIP) and built.visual.image_size == (224, 224)


def test_harmless_arguments_with_such_names_pass():
    check(
        spec("timm.create_model", model_name="resnet18.a1_in1k", pretrained=False, drop_path=0.1)
    )
    check(spec("torchvision.models.googlenet", weights=None, init_weights=True))
    check(spec("robustguide.nets.UNet", use_checkpoint=True))


def test_listed_builders_build():
    levels = build(spec("robustguide.noise.cosine_levels", steps=20))
    assert isinstance(levels, DiscreteLevels) and len(levels) == 20
    same = build(spec("robustguide.noise.DiscreteLevels", betas=levels.betas.tolist()))
    assert same.sigmas.tolist() == levels.sigmas.tolist()
    with torch.device("meta"):
        for made in (
            spec("torchvision.models.resnet18", num_classes=7, weights=None),
            spec("torchvision.models.resnet.resnet18", num_classes=7),
            spec("torchvision.models.get_model", name="resnet18", num_classes=7),
        ):
            net = build(made)
            assert isinstance(net, torchvision.models.ResNet) and net.fc.out_features == 7
        net = build(spec("timm.create_model", model_name="resnet10t", num_classes=7))
        assert isinstance(net, timm.models.ResNet) and net.num_classes == 7


def test_arguments_that_do_not_fit_are_told():
    nested = spec("robustguide.nets.EncoderUNet", image_sise=8)
    with pytest.raises(ValueError, match=r"EncoderUNet at 'net' cannot be built.*image_sise"):
        build(spec("robustguide.classifiers.SigmaConditioned", net=nested, num_classes=2))


@pytest.mark.parametrize(
    "value", [None, 3, [], [spec("robustguide.nets.UNet")], {"init_args": {}}]
)
def test_a_specification_begins_with_a_class_path(value):
    with pytest.raises(ValueError, match="dict with class_path"):
        check(value)
