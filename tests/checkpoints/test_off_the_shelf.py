"""Classifiers of clean images by name, with local weights."""

import pytest
import timm
import torch
import torchvision
from checkpoint_examples import assert_same, spec
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from torchvision.models import get_model, get_model_weights
from torchvision.transforms.functional import normalize, to_tensor

from robustguide.checkpoints import (
    build,
    clip_classifier,
    export,
    keys_clip,
    load_classifier,
    portable,
    timm_classifier,
    torchvision_classifier,
    with_weights,
)
from robustguide.classifiers import OffTheShelf, ZeroShot
from robustguide.classifiers.off_the_shelf import IMAGENET_MEAN, IMAGENET_STD

IMAGENET = IMAGENET_MEAN, IMAGENET_STD
LOADERS = "robustguide.checkpoints"


def randomised(net, seed=0):
    """Statistics and weights other than those of a new network."""
    generator = torch.Generator().manual_seed(seed)
    for value in net.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return net.eval()


def saved(net, path, wrap=lambda state: state):
    torch.save(wrap(net.state_dict()), path)
    return str(path)


def images(side=40, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


def clean(x):
    return torch.zeros(len(x))


def test_a_network_of_torchvision_from_its_file(tmp_path):
    net = randomised(get_model("resnet18", num_classes=5))
    path = saved(net, tmp_path / "resnet18.pth")
    classifier = torchvision_classifier("resnet18", path, num_classes=5)
    transforms = get_model_weights("resnet18").DEFAULT.transforms()
    assert classifier.size == transforms.crop_size[0] == 224
    x = images(224)
    want = net(normalize((x + 1) / 2, transforms.mean, transforms.std))
    assert_close(classifier(x, clean(x)), want, rtol=1e-5, atol=1e-5)
    assert classifier.metadata.path == path and not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize("name", ["efficientnet_b0", "vit_b_16", "efficientnet_v2_l"])
def test_each_network_is_shown_what_it_was_evaluated_on(name):
    """In torchvision's own words; blank, without memory."""
    transforms = get_model_weights(name).DEFAULT.transforms()
    told = portable(spec(f"{LOADERS}.torchvision_classifier", name=name))["init_args"]
    assert told["size"] == transforms.crop_size[0]
    assert told["interpolation"] == transforms.interpolation.value
    assert (told["mean"], told["std"]) == (transforms.mean, transforms.std)
    assert (name == "efficientnet_v2_l") == (told["mean"] == [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("preprocess", "want"),
    [
        ("raw", lambda x: x),
        ("imagenet_norm", lambda x: normalize((x + 1) / 2, *IMAGENET)),
        ("imagenet_norm+resize", lambda x: normalize(halved((x + 1) / 2), *IMAGENET)),
    ],
)
def test_what_the_network_sees_of_an_image(preprocess, want, file):
    """The three inputs that EluCD's ablation is about; its own code shows the image as it is."""
    size = 20 if preprocess.endswith("resize") else None
    classifier = torchvision_classifier("resnet18", file, 5, size, preprocess=preprocess)
    x = images(40)
    net = get_model("resnet18", num_classes=5)
    net.load_state_dict(torch.load(file))
    assert_close(classifier.prepared(x), want(x), rtol=1e-5, atol=1e-6)
    assert_close(classifier(x, clean(x)), net.eval()(want(x)), rtol=1e-4, atol=1e-4)
    assert classifier.reads((3, 64, 64)) and classifier.reads((3, 128, 128))


def halved(x):
    return functional.interpolate(x, (20, 20), mode="bilinear", antialias=True)


@pytest.mark.parametrize("preprocess", ["raw", "imagenet_norm"])
def test_networks_of_one_size_say_so_where_nothing_resizes(preprocess):
    given = spec(f"{LOADERS}.torchvision_classifier", name="vit_b_16", preprocess=preprocess)
    with torch.device("meta"):
        classifier = build(portable(given))
    assert classifier.reads((3, 224, 224)) and not classifier.reads((3, 128, 128))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_resized_as_the_libraries_resize_them(interpolation):
    """To a level of 255, since the library rounds to bytes; without values that it would clip."""
    shelf = OffTheShelf(
        nn.Identity(), 3, [0.0] * 3, [1.0] * 3, size=24, interpolation=interpolation, clamp=True
    )
    pixels = torch.randint(64, 192, (50, 40, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.to(torch.uint8).numpy())
    mode = getattr(Image.Resampling, interpolation.upper())
    want = to_tensor(picture.resize((24, 24), mode))
    got = shelf.prepared(to_tensor(picture)[None] * 2 - 1)[0]
    assert_close(got, want, rtol=0, atol=1.01 / 255)


def test_old_names_and_absent_counters(tmp_path):
    """Torchvision's published DenseNet-121 has other names, and no counters of batches."""
    net = randomised(get_model("densenet121", num_classes=3))
    old = {}
    for name, value in net.state_dict().items():
        if "num_batches" not in name:
            for part in ("norm", "conv"):
                if "denselayer" in name:
                    name = name.replace(f".{part}1.", f".{part}.1.")
                    name = name.replace(f".{part}2.", f".{part}.2.")
            old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    path = str(tmp_path / "densenet.pth")
    classifier = torchvision_classifier("densenet121", path, num_classes=3, size=32)
    ours = classifier.net.state_dict()
    assert all(torch.equal(ours[n], v) for n, v in net.state_dict().items() if "batches" not in n)


def test_the_files_of_inception_want_its_own_standardisation(tmp_path):
    given = {"name": "googlenet", "num_classes": 4}
    blank = portable(spec(f"{LOADERS}.torchvision_classifier", **given))
    filled = portable(spec(f"{LOADERS}.torchvision_classifier", **given, weights="a.pth"))
    assert "transform_input" not in blank["init_args"]["net"]["init_args"]
    assert filled["init_args"]["net"]["init_args"]["transform_input"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{name}": value for name, value in state.items()},
    ],
    ids=["plain", "nested", "distributed"],
)
def test_a_network_of_timm_from_its_file(tmp_path, wrap):
    net = randomised(timm.create_model("resnet10t.c3_in1k", num_classes=5))
    path = saved(net, tmp_path / "a.pth", wrap)
    classifier = timm_classifier("resnet10t.c3_in1k", path, num_classes=5)
    known = timm.data.resolve_model_data_config(net)
    x = images(known["input_size"][-1])
    mean, std = (torch.tensor(known[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    want = net(((x + 1) / 2 - mean) / std)
    assert_close(classifier(x, clean(x)), want, rtol=1e-5, atol=1e-5)
    assert classifier.interpolation == known["interpolation"]


def test_timm_decides_by_the_tag():
    """Two sets of weights of one network, which were trained on differently scaled images."""
    for tag in ("augreg_in1k", "orig_in21k"):
        name = f"vit_base_patch16_224.{tag}"
        told = portable(spec(f"{LOADERS}.timm_classifier", name=name))["init_args"]
        known = timm.get_pretrained_cfg(name)
        assert told["mean"] == list(known.mean) and told["num_classes"] == known.num_classes
        assert told["size"] == 224
    small = portable(spec(f"{LOADERS}.timm_classifier", name=name, size=32, num_classes=7))
    with torch.device("meta"):
        assert build(small).net.patch_embed.img_size == (32, 32)


def test_any_network_from_any_file(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    net = randomised(net)
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    both = {"state_dict": net.state_dict(), "state_dict_ema": randomised(net, 1).state_dict()}
    torch.save(both, tmp_path / "a.pth")
    blank = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    found = with_weights(blank, str(tmp_path / "a.pth"), part="state_dict_ema")
    assert found is blank
    assert all(torch.equal(v, net.state_dict()[n]) for n, v in blank.state_dict().items())
    with_weights(blank, str(tmp_path / "a.safetensors"))
    assert any(not torch.equal(v, net.state_dict()[n]) for n, v in blank.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: torchvision_classifier("resnet18", path),
            r"fit the ResNet: fc\.weight: file \[5, 512\], network \[1000, 512\].*num_classes",
        ),
        (lambda path: torchvision_classifier("resnet34", path), "file has none"),
        (lambda path: torchvision_classifier("resnet9"), r"no classifier 'resnet9'.*list_models"),
        (lambda path: torchvision_classifier("fasterrcnn_resnet50_fpn"), "no classifier"),
        (
            lambda path: torchvision_classifier("resnet18", path, 5, 64, preprocess="raw"),
            r"preprocess 'raw' does not resize, but size 64 was given; leave it out",
        ),
        (lambda path: timm_classifier("resnet_18", path), r"no model 'resnet_18'.*resnet"),
        (lambda path: with_weights(nn.Linear(1, 1), path), r"fit the Linear: .*conv1\.weight"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, make, message):
    path = saved(get_model("resnet18", num_classes=5), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=message):
        make(path)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        torchvision_classifier("resnet18", "none.pth")


TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
NET = "torchvision.models.resnet18"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    net = randomised(get_model("resnet18", num_classes=5))
    return saved(net, tmp_path_factory.mktemp("weights") / "resnet18.pth")


@pytest.mark.parametrize(
    "given",
    [
        lambda file: spec(
            f"{LOADERS}.torchvision_classifier", name="resnet18", weights=file, num_classes=5
        ),
        lambda file: spec(
            f"{LOADERS}.torchvision_classifier",
            name="resnet18",
            weights=file,
            num_classes=5,
            preprocess="raw",
        ),
        lambda file: spec(
            "robustguide.classifiers.OffTheShelf",
            net=spec(f"{LOADERS}.with_weights", net=spec(NET, num_classes=5), weights=file),
            num_classes=5,
            mean=[0.0, 0.0, 0.0],
            std=[1.0, 1.0, 1.0],
        ),
        lambda file: spec(
            f"{LOADERS}.timm_classifier", name="resnet10t.c3_in1k", num_classes=5, size=32
        ),
        lambda file: spec(
            f"{LOADERS}.clip_classifier", architecture=TINY_CLIP, class_names=list("abcde")
        ),
    ],
    ids=["torchvision", "as-it-is", "raw", "timm", "clip"],
)
def test_what_was_exported_stands_alone(given, file, tmp_path):
    """A configuration names a function and a file; the checkpoint needs neither."""
    specification = given(file)
    name = specification["class_path"].rpartition(".")[2]
    if name == "OffTheShelf":
        net = with_weights(get_model("resnet18", num_classes=5), file).eval()
        arguments = {**specification["init_args"], "net": net}
        classifier = OffTheShelf(**arguments)
    else:
        torch.manual_seed(0)
        function = {f.__name__: f for f in (torchvision_classifier, timm_classifier)}
        function = function.get(name, clip_classifier)
        classifier = function(**specification["init_args"])
    path = str(tmp_path / "a.safetensors")
    said = {"class_names": list("abcde"), "shape": [3, 40, 40], "weights": "raw"}
    export(classifier, path, specification, **said)
    loaded, x = load_classifier(path), images()
    assert_same(loaded, classifier, x, clean(x))
    assert not any("transformer.resblocks" in n and "visual" not in n for n in loaded.state_dict())


def test_weights_of_a_whole_clip_from_a_file(tmp_path):
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP).eval()
    # OpenAI's own files note three sizes among the weights
    sizes = {"input_resolution": 16, "context_length": 77, "vocab_size": 49408}
    noted = {name: torch.tensor(value) for name, value in sizes.items()}
    torch.save({**model.state_dict(), **noted}, tmp_path / "clip.pt")
    names = ["cat", "dog", "newt"]
    found = clip_classifier(TINY_CLIP, names, weights=str(tmp_path / "clip.pt"))
    assert isinstance(found.net, ZeroShot) and found.metadata.class_names == tuple(names)
    x = images(16)
    texts = open_clip.tokenize([f"a photo of a {name}." for name in names])
    logits, _ = model.get_logits(found.prepared(x), texts)
    assert_close(found(x, clean(x)), logits, rtol=1e-5, atol=1e-5)
    del noted["input_resolution"], noted["context_length"], noted["vocab_size"]
    torch.save({**model.state_dict(), "visual.other": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"fit the CLIP: visual\.other: file \[1\]"):
        clip_classifier(TINY_CLIP, names, weights=str(tmp_path / "other.pt"))


def test_pretrained_weights_come_from_the_library(monkeypatch):
    """What the library would be asked for; nothing is downloaded."""
    asked = {}

    def answer(name, **given):
        asked[name] = given
        return nn.Linear(1, 1)

    monkeypatch.setattr(torchvision.models, "get_model", answer)
    monkeypatch.setattr(timm, "create_model", answer)
    assert torchvision_classifier("resnet18", pretrained=True).size == 224
    assert timm_classifier("resnet10t.c3_in1k", pretrained=True).size == 176
    assert asked["resnet18"]["weights"] == "DEFAULT"
    assert asked["resnet10t.c3_in1k"]["pretrained"] is True


def test_names_of_a_clip_for_a_card():
    """The tensors of a whole network become those of the classifier that a card describes."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP).eval()
    names = ["cat", "dog"]
    tensors = keys_clip.to_ours(TINY_CLIP, model.state_dict(), names)
    net = ZeroShot(TINY_CLIP, 2)
    shelf = OffTheShelf(net, 2, size=16)
    shelf.load_state_dict(tensors)
    wanted = open_clip.build_zero_shot_classifier(
        model, open_clip.tokenize, names, ["a photo of a {}."]
    )
    assert_close(shelf.net.text_features, wanted.T)
    assert torch.equal(shelf.net.visual.conv1.weight, model.visual.conv1.weight)
    with pytest.raises(ValueError, match="fit the CLIP"):
        keys_clip.to_ours(TINY_CLIP, {"visual.proj": torch.ones(1)}, names)
