"""Every card: builds its network without memory, and names the tensors of the published file."""

import json
from urllib.parse import urlsplit

import pytest
import torch
from golden_files import FOLDER, listing

from robustguide.cards import Card, card, card_of_file, cards, present
from robustguide.checkpoints import load_classifier, load_denoiser
from robustguide.checkpoints.description import described
from robustguide.checkpoints.keys import original, translated
from robustguide.checkpoints.load import KINDS, outline

# One card of each published network whose tensors are listed; variants share their network.
LISTED = {
    "adm-imagenet64": "adm_imagenet64_diffusion",
    "adm-imagenet128": "adm_imagenet128_diffusion",
    "adm-imagenet256": "adm_imagenet256_diffusion",
    "adm-imagenet256-uncond": "adm_imagenet256_diffusion_uncond",
    "adm-imagenet512": "adm_imagenet512_diffusion",
    "adm-upsampler64-256": "adm_upsampler_64_256",
    "adm-upsampler128-512": "adm_upsampler_128_512",
    "lsun-bedroom": "adm_lsun256_diffusion",
    "lsun-cat": "adm_lsun256_diffusion",
    "lsun-horse": "adm_lsun256_diffusion",
    "lsun-horse-nodropout": "adm_lsun256_diffusion",
    "adm-classifier64": "adm_classifier_64",
    "adm-classifier128": "adm_classifier_128",
    "adm-classifier256": "adm_classifier_256",
    "adm-classifier512": "adm_classifier_512",
    "kawar-imagenet128-classifier": "kawar_imagenet128_classifier",
    "kawar-cifar10-classifier": "kawar_cifar10_classifier",
    "kawar-cifar10": "kawar_cifar10_diffusion",
    **{
        f"edm-{name}-32x32-{kind}-{sde}": f"edm_{name}_{kind}_{sde}_{arch}"
        for name in ["cifar10"]
        for kind in ("cond", "uncond")
        for sde, arch in (("vp", "ddpmpp"), ("ve", "ncsnpp"))
    },
    **{
        f"edm-{name}-64x64-uncond-{sde}": f"edm_{name}_64_uncond_{sde}_{arch}".replace(
            "ffhq_64", "ffhq64"
        )
        for name in ("ffhq", "afhqv2")
        for sde, arch in (("vp", "ddpmpp"), ("ve", "ncsnpp"))
    },
    "edm-imagenet-64x64-cond-adm": "edm_imagenet64_cond_adm",
    "dit-xl2-imagenet256": "dit_xl_2_256",
    "dit-xl2-imagenet512": "dit_xl_2_512",
    "dit-training-s2": "dit_s_2_256",
    "dit-training-b2": "dit_b_2_256",
    "dit-training-l2": "dit_l_2_256",
    "dit-training-xl2": "dit_xl_2_256",
    **{
        f"edm2-{name}": f"edm2_{name.replace('-', '_')}"
        for name in [
            *(f"img512-{size}" for size in ("xs", "s", "m", "l", "xl", "xxl")),
            *(f"img512-{size}-uncond" for size in ("xs", "s")),
            *(f"img64-{size}" for size in ("xs", "s", "m", "l", "xl")),
        ]
    },
}


def networks():
    """The first card of each network."""
    first = {}
    for each in cards().values():
        first.setdefault(json.dumps(each.specification, sort_keys=True), each)
    return {each.name: each for each in first.values()}


@pytest.fixture(scope="module")
def built():
    """Networks of cards without memory, each built once."""
    found = {}

    def build(name):
        if name not in found:
            found[name] = outline(cards()[name].specification)
        return found[name]

    return build


@pytest.mark.parametrize("name", networks())
def test_a_card_builds_what_it_says(built, name):
    of, module = cards()[name], built(name)
    assert isinstance(module, KINDS[of.kind])
    assert getattr(module, "num_classes", 0) == of.num_classes
    shape = getattr(module, "shape", None)
    assert shape is None or tuple(shape) == of.shape
    if of.parameters is not None:
        trainable = [p for p in module.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trainable) == of.parameters
    assert len(described(of, FOLDER).class_names) == of.num_classes


@pytest.mark.parametrize("name", LISTED)
def test_names_and_shapes_are_those_of_the_published_file(built, name):
    _, shapes = listing(LISTED[name])
    of, state = cards()[name], built(name).state_dict()
    theirs = original(of, state)
    assert {key: tuple(tensor.shape) for key, tensor in theirs.items()} == shapes
    back = translated(of, theirs)
    assert {key: tuple(tensor.shape) for key, tensor in back.items()} == {
        key: tuple(tensor.shape) for key, tensor in state.items()
    }


def test_every_listing_belongs_to_a_card():
    known = {path.name.partition(".")[0] for path in (FOLDER / "listings").glob("*.json.gz")}
    unpublished = {"edm2_img512_xxs"}  # a network of EDM2's training script, without a file
    assert known == set(LISTED.values()) | unpublished


@pytest.mark.parametrize("of", cards().values(), ids=lambda of: of.name)
def test_fields(of):
    assert of.kind in KINDS and of.licence and of.source and of.title
    assert of.url is None or of.url.startswith(("https://", "http://"))
    assert of.conventions
    # Those of one place share one name, so that their own is made up.
    if of.url is not None and "//huggingface.co/" not in of.url:
        assert urlsplit(of.url).path.endswith(f"/{of.file}")


def test_files_find_their_cards():
    assert card_of_file("anywhere/256x256_diffusion.pt") is cards()["adm-imagenet256"]
    assert card_of_file("model299999.pt") is None  # of either classifier
    assert card_of_file("mine.pt") is None
    published, own = "edm2-img512-xs-2147483-0.135.pkl", "edm2-img512-xs-2147483-0.100.pkl"
    assert card_of_file(published).name == "edm2-img512-xs-2147483-0.135"
    assert card_of_file(own).name == "edm2-img512-xs"
    assert card_of_file("edm2-img512-xs-uncond-2147483-0.1.pkl").name == "edm2-img512-xs-uncond"


def test_an_unknown_card_is_told():
    with pytest.raises(ValueError, match="did you mean adm-classifier64"):
        card("adm-clasifier64")
    with pytest.raises(ValueError, match="`robustguide cards` lists all"):
        card("zzzz")


def test_a_missing_file_tells_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="`robustguide fetch adm-imagenet64` downloads it"):
        load_denoiser(card="adm-imagenet64")
    with pytest.raises(FileNotFoundError, match="bahjat-kawar"):
        load_classifier(card="kawar-cifar10-classifier")


def test_the_converted_file_comes_first(tmp_path):
    of = cards()["adm-imagenet64"]
    assert present(of, tmp_path) is None
    (tmp_path / of.file).touch()
    assert present(of, tmp_path) == tmp_path / of.file
    (tmp_path / of.converted).touch()
    assert present(of, tmp_path) == tmp_path / of.converted


def test_on_the_meta_device_a_card_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(tmp_path))
    named = load_classifier(card="kawar-cifar10-classifier", device="meta")
    with torch.device("meta"):
        around = load_classifier(card="kawar-cifar10-classifier")
    for classifier in (named, around):
        assert all(p.is_meta for p in classifier.parameters())
        assert not classifier.training
        assert classifier.metadata.class_names[3] == "cat"
    with pytest.raises(ValueError, match="holds a classifier, but a denoiser was asked for"):
        load_denoiser(card="kawar-cifar10-classifier", device="meta")


def test_variants_are_cards_of_one_network():
    from robustguide.cards.catalogue import read

    entry = {
        "title": "t {variant}", "kind": "denoiser", "file": "f-{variant}.pkl", "licence": "l",
        "source": "s", "specification": {}, "keys": {"": ""}, "shape": [1, 2, 3],
        "variants": {"a": None, "b": {"result": "good"}},
    }  # fmt: skip
    base, first, second = read("net", entry)
    assert (base.name, base.file, base.url) == ("net", "f-[0-9]*.pkl", None)
    assert isinstance(first, Card)
    assert (first.name, first.file, first.title) == ("net-a", "f-a.pkl", "t a")
    assert (second.name, second.result, second.shape) == ("net-b", "good", (1, 2, 3))
