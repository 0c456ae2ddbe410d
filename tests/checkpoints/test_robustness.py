"""Files of the `robustness` package, against what the package itself said of them."""

from functools import partial

import pytest
import torch
from golden_files import FOLDER, load
from jsonargparse import ArgumentParser
from torch import nn
from torch.testing import assert_close
from torchvision.models.resnet import Bottleneck, ResNet

from robustguide.attacks import PGD, L2Ball, LinfBall, pgd
from robustguide.checkpoints import export, load_classifier, load_robustness, portable, robustness
from robustguide.classifiers import OffTheShelf
from robustguide.interfaces import Classifier
from robustguide.nets import CifarResNet

CIFAR, IMAGENET = "robustness_cifar_style", "robustness_imagenet_style"
BALLS = {"2": L2Ball, "inf": LinfBall}
RUNS = [(name, run["case"]) for name in (CIFAR, IMAGENET) for run in load(name)[0]["runs"]]


class TinyResNet(ResNet):
    """Torchvision's with stages of 4, 8, 16 and 32 planes."""

    def __init__(self, num_classes=7):
        super().__init__(Bottleneck, [1, 1, 1, 1], num_classes=num_classes)
        self.fc = nn.Linear(32 * Bottleneck.expansion, num_classes)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        return super()._make_layer(block, planes // 16, blocks, stride, dilate)


def path_of(name):
    return str(FOLDER / f"{name}.pt")


def classifier_of(name):
    return load_robustness(path_of(name), None if name == CIFAR else TinyResNet())


def content(name=CIFAR):
    return torch.load(path_of(name), weights_only=True)


def clean(like):
    return torch.zeros(len(like))


@pytest.mark.parametrize("name", [CIFAR, IMAGENET])
def test_the_published_numbers(name):
    description, golden = load(name)
    classifier = classifier_of(name)
    allowed = description["tolerance"]["logits/latent/normalised"]
    x = golden["in.x"] * 2 - 1  # reaches beyond [-1, 1], where the file's network clamps
    assert x.abs().max() > 1
    latents = []
    last = classifier.net.linear if name == CIFAR else classifier.net.fc
    last.register_forward_pre_hook(lambda _, given: latents.append(given[0]))
    assert_close(classifier.prepared(x), golden["out.normalised"], **allowed)
    assert_close(classifier(x, clean(x)), golden["out.logits"], **allowed)
    assert_close(latents[0], golden["out.latent"], **allowed)
    for key in ("mean", "std"):
        assert getattr(classifier, key).flatten().tolist() == description[key]
    assert classifier.num_classes == golden["out.logits"].shape[1]


def test_there_is_no_gradient_outside_the_range():
    classifier, golden = classifier_of(CIFAR), load(CIFAR)[1]
    x = (golden["in.x"] * 2 - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(x, clean(x)).logsumexp(-1).sum(), x)
    outside = x.abs() > 1
    assert outside.any() and (gradient[outside] == 0).all() and (gradient[~outside] != 0).any()


@pytest.mark.parametrize(("name", "case"), RUNS)
def test_the_published_attacks(name, case, monkeypatch):
    """On images in [0, 1] and with the box of that range, the ascent is the package's."""
    description, golden = load(name)
    run = next(each for each in description["runs"] if each["case"] == case)
    given, classifier = run["arguments"], classifier_of(name)
    x, y = golden["in.x_clamped"], golden[run["labels"]]
    sign = -1 if given.get("targeted") else 1
    if given.get("random_start"):
        for source in ("rand", "randn"):
            monkeypatch.setattr(torch, source, lambda *_, **__: golden[f"in.{case}.draw"])

    def losses(moved, rows):
        logits = classifier(moved * 2 - 1, clean(rows))
        loss = nn.functional.cross_entropy(logits, y[rows], reduction="none")
        return sign * loss, torch.ones(len(rows), dtype=torch.bool)

    adversary = pgd(
        losses,
        x,
        partial(BALLS[given["constraint"]], box=(0.0, 1.0)),
        given["iterations"],
        given["step_size"],
        given["eps"],
        random_start=given.get("random_start", False),
        early_stop=False,
        keep_best=given.get("use_best", True),
    )
    want = golden[f"out.{case}.x_adv"]
    rtol, atol = run["tolerance"]["rtol"], run["tolerance"]["atol"]
    if given["constraint"] == "2":
        assert_close(adversary, want, rtol=rtol, atol=atol[f"out.{case}.x_adv"])
        logits = classifier(adversary * 2 - 1, clean(x))
        assert_close(
            logits, golden[f"out.{case}.logits"], rtol=rtol, atol=atol[f"out.{case}.logits"]
        )
    else:  # the sign of a gradient near zero depends on the machine
        differs = (adversary - want).abs() > 3e-6
        assert differs.double().mean() <= 0.005
        assert (adversary - want).abs().max() <= 2.001 * given["step_size"]


class Boxed(L2Ball):
    """Stays in the range of images."""

    def __init__(self, *args, generator=None):
        super().__init__(*args, box=(-1.0, 1.0), generator=generator)


@pytest.mark.parametrize("case", ["l2", "l2_last"])
def test_the_attack_that_configurations_name_is_the_same(case):
    """At noise level 0, radii twice as large, because [-1, 1] is."""
    description, golden = load(IMAGENET)
    run = next(each for each in description["runs"] if each["case"] == case)
    given = run["arguments"]
    attack = PGD(
        radius=2 * given["eps"],
        steps=given["iterations"],
        ball=Boxed,
        step_fraction=given["step_size"] / given["eps"],
        early_stop=False,
        keep_best=given.get("use_best", True),
    )
    x = golden["in.x_clamped"] * 2 - 1
    adversary = attack(classifier_of(IMAGENET), x, clean(x), golden["in.y"])
    assert_close((adversary + 1) / 2, golden[f"out.{case}.x_adv"], rtol=1e-4, atol=6e-6)


def test_old_files_and_those_without_the_beginning_of_names(tmp_path):
    tensors = content()["model"]
    wanted = classifier_of(CIFAR).state_dict()
    old = {"state_dict": tensors, "epoch": 1}
    short = {name.removeprefix("module."): each for name, each in tensors.items()}
    alone = {name: each for name, each in short.items() if not name.startswith("attacker.")}
    for number, saved in enumerate((old, short, alone)):
        torch.save(saved, tmp_path / f"{number}.pt")
        found = load_robustness(str(tmp_path / f"{number}.pt")).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_several_networks_in_a_file_are_told_apart(tmp_path):
    state = content()["model"]
    torch.save({"model": state, "ema": state}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"which part.*'model', 'ema'"):
        load_robustness(str(tmp_path / "two.pt"))
    assert load_robustness(str(tmp_path / "two.pt"), part="ema").num_classes == 10


def changed(tmp_path, change):
    tensors = content()["model"]
    change(tensors)
    torch.save({"model": tensors}, tmp_path / "changed.pt")
    return str(tmp_path / "changed.pt")


def shift(tensors, name):
    tensors[name] = tensors[name] + 1  # another tensor: in the file the two are one


def drop_normalizer(tensors):
    for name in [name for name in tensors if "normalize" in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: shift(t, "module.attacker.model.linear.bias"),
            r"attacker\.model\.linear\.bias is not the same as model\.linear\.bias",
        ),
        (
            lambda t: shift(t, "module.attacker.normalize.new_std"),
            r"attacker\.normalize\.new_std is not the same",
        ),
        (drop_normalizer, r"not in the format of robustness.*model\.conv1\.weight"),
        (
            lambda t: t.pop("module.model.linear.bias"),
            r"attacker\.model\.linear\.bias is not the same",
        ),
        (
            lambda t: t.update({"module.other": torch.ones(2)}),
            r"not in the format of robustness.*it holds other",
        ),
    ],
    ids=["network", "deviation", "no mean", "missing", "extra"],
)
def test_a_file_that_is_not_what_it_seems(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_robustness(changed(tmp_path, change))


def test_a_network_that_does_not_fit_or_is_not_known():
    with pytest.raises(
        ValueError, match=r"fit the TinyResNet: .*conv1\.weight: file \[4, 3, 3, 3\]"
    ):
        load_robustness(path_of(CIFAR), TinyResNet())
    with pytest.raises(ValueError, match=r"no ResNet of torchvision.*\[1, 1, 1, 1\].*as `net`"):
        load_robustness(path_of(IMAGENET))


@pytest.mark.parametrize(
    ("name", "bottleneck"), [("resnet18", False), ("resnet50", True), ("wide_resnet50_2", True)]
)
def test_networks_for_imagenet_are_known_by_their_tensors(name, bottleneck):
    """By the shapes of every ResNet that the package publishes; nothing has memory."""
    import torchvision

    with torch.device("meta"):
        net = torchvision.models.get_model(name, num_classes=9)
    told = robustness.architecture(net.state_dict(), "a.pt")
    assert told["class_path"] == f"torchvision.models.{name}"
    assert told["init_args"] == {"num_classes": 9}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"blocks": [2, 2, 2, 2], "bottleneck": False}, {"width": 32, "image_size": 64}],
)
def test_networks_for_small_images_are_known_by_their_tensors(arguments):
    with torch.device("meta"):
        state = CifarResNet(**arguments).state_dict()
    told = robustness.architecture(state, "a.pt")
    with torch.device("meta"):
        again = CifarResNet(**told["init_args"]).state_dict()
    assert told["class_path"] == "robustguide.nets.CifarResNet"
    assert {name: each.shape for name, each in again.items()} == {
        name: each.shape for name, each in state.items()
    }


def test_names_for_a_card():
    ours = robustness.to_ours(content()["model"])
    wanted = classifier_of(CIFAR).state_dict()
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer releases: instantiate
def test_a_configuration_names_it_and_a_checkpoint_of_it_stands_alone(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--classifier", type=Classifier)
    given = {
        "class_path": "robustguide.checkpoints.load_robustness",
        "init_args": {"path": path_of(CIFAR)},
    }
    classifier = parser.instantiate_classes(parser.parse_object({"classifier": given})).classifier
    assert isinstance(classifier, OffTheShelf) and not classifier.training
    assert classifier.metadata.path == path_of(CIFAR)
    assert classifier.shape == (3, 32, 32) and not classifier.reads((3, 64, 64))
    path = tmp_path / "ours.safetensors"
    names = [f"class {k}" for k in range(10)]
    export(classifier, path, given, class_names=names, shape=[3, 32, 32], weights="raw")
    loaded, (_, golden) = load_classifier(str(path)), load(CIFAR)
    x = golden["in.x"] * 2 - 1
    assert torch.equal(loaded(x, clean(x)), classifier(x, clean(x)))
    assert portable(given)["init_args"]["net"]["class_path"] == "robustguide.nets.CifarResNet"
