"""CLIP as a classifier, with random weights in the official layout, against open_clip itself."""

import sys

import open_clip
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from robustguide.checkpoints import clip_classifier
from robustguide.classifiers import ZeroShot
from robustguide.classifiers.clip import clip, configuration, imagenet_names, zero_shot

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": TEXT,
}
RESNET = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": TEXT,
}
NAMES = ["tench", "golden retriever", "Band Aid"]
TEMPLATES = ["a photo of a {}.", "a {} in a video game.", "{}"]


def pair(architecture, names=NAMES, templates=TEMPLATES):
    """The whole network of the library, and our classifier with its weights."""
    torch.manual_seed(0)
    model = clip(architecture).eval()
    with torch.no_grad():
        model.logit_scale.fill_(4.5)
    return model, zero_shot(architecture, model, names, templates)


def images(side, count=3, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
def test_logits_and_gradients_are_the_librarys(architecture):
    model, net = pair(architecture)
    x = images(architecture["vision_cfg"]["image_size"]).requires_grad_()
    texts = open_clip.build_zero_shot_classifier(
        model, open_clip.tokenize, NAMES, TEMPLATES, num_classes_per_batch=None
    )
    assert_close(net.text_features, texts.T)
    assert_close(net.text_features.norm(dim=-1), torch.ones(3))
    want = model.logit_scale.exp() * model.encode_image(x, normalize=True) @ texts
    assert_close(net(x), want)
    ours, theirs = (
        torch.autograd.grad(logits.log_softmax(-1)[:, 1].sum(), x)[0] for logits in (net(x), want)
    )
    assert theirs.flatten(1).norm(dim=1).min() > 0
    assert_close(ours, theirs)


def test_one_sentence_for_each_class_is_the_librarys_own_comparison():
    model, net = pair(VIT, NAMES, ["{}"])
    logits, _ = model.get_logits(images(32), open_clip.tokenize(NAMES))
    assert_close(net(images(32)), logits)
    features = model.encode_text(open_clip.tokenize(NAMES), normalize=True)
    assert_close(net.text_features, features)


def test_the_text_network_is_left_behind():
    model, net = pair(VIT)
    ours = {name for name in net.state_dict() if name.startswith("visual.")}
    assert ours == {name for name in model.state_dict() if name.startswith("visual.")}
    assert net.state_dict().keys() - ours == {"text_features", "logit_scale"}
    again = ZeroShot(VIT, 3)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(images(32)), net(images(32)))


@pytest.mark.parametrize("autocast", [False, True])
def test_cosines_are_in_float32(autocast):
    """A cosine near 1 is off by 1/256 in bfloat16, which a scale of 90 makes a third."""
    _, net = pair(VIT)
    net.visual = torch.nn.Flatten()
    exact = net.text_features.clone()
    features = (exact * 7).to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = net(features[:, :, None, None])
    assert logits.dtype == torch.float32
    want = net.logit_scale.exp() * F.normalize(features.float(), dim=-1) @ exact.T
    assert_close(logits, want)


@pytest.mark.parametrize(
    "name", ["ViT-L-14-336-quickgelu", "ViT-L/14-quickgelu", "RN50-quickgelu"]
)
def test_published_networks_by_name(name):
    """The layout of the library's whole network, on the meta device."""
    official = open_clip.get_model_config(name.replace("/", "-"))
    with torch.device("meta"):
        net, model = ZeroShot(name, 1000), open_clip.CLIP(**official)
    wanted = {n: v.shape for n, v in model.state_dict().items() if n.startswith("visual.")}
    found = {n: v.shape for n, v in net.state_dict().items() if n.startswith("visual.")}
    assert found == wanted
    assert net.text_features.shape == (1000, official["embed_dim"])


def test_the_shelf_shows_it_its_own_images():
    """Official constants are written out, so that a checkpoint needs no library to say them."""
    shelf = clip_classifier(VIT, NAMES)
    assert shelf.mean.flatten().tolist() == torch.tensor(open_clip.OPENAI_DATASET_MEAN).tolist()
    assert shelf.std.flatten().tolist() == torch.tensor(open_clip.OPENAI_DATASET_STD).tolist()
    assert (shelf.size, shelf.interpolation, shelf.num_classes) == (32, "bicubic", 3)
    x = images(64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(shelf(x, torch.zeros(3)).sum(), x)
    assert gradient.abs().flatten(1).sum(1).min() > 0


def test_the_names_of_imagenet_are_the_default():
    names = imagenet_names()
    assert len(names) == 1000
    assert names[0] == "tench" and names[-1] == "toilet paper"


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("ViT-Z", "no model 'ViT-Z'"),
        ("hf-hub:somebody/model", "no model 'hf-hub:somebody/model'"),
        ("local-dir:/tmp", "no model"),
        ("roberta-ViT-B-32", "hf_model_name"),
        ("ViT-B-16-SigLIP", "hf_tokenizer_name"),
        ("convnext_base", "timm_model_name"),
        ("coca_ViT-B-32", "multimodal_cfg"),
        ({"embed_dim": 4, "vision_cfg": {}}, "text_cfg"),
        ({**VIT, "vision_cfg": {"timm_model_name": "hf-hub:a/b"}}, "timm_model_name"),
        ({**VIT, "custom_text": True}, "custom_text"),
    ],
)
def test_what_comes_from_elsewhere_is_refused(architecture, message):
    with pytest.raises(ValueError, match=message):
        configuration(architecture)


@pytest.mark.parametrize(("names", "templates"), [([], ["{}"]), (NAMES, []), (NAMES, ["a photo"])])
def test_classes_without_words(names, templates):
    with pytest.raises(ValueError, match="a name for every class, and templates"):
        zero_shot(VIT, None, names, templates)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"pip install 'robustguide\[clip\]'"):
        ZeroShot("RN50", 2)
