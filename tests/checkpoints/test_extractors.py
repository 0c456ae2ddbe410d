"""Networks of protocols from files in the official layouts, with seeded random weights."""

import copy
import hashlib
import pickle
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import timm
import torch
from checkpoint_examples import CLASSIFIERS
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from robustguide.cards import card, cards
from robustguide.checkpoints import build, clip_classifier, export, load_classifier
from robustguide.checkpoints.convert import convert
from robustguide.checkpoints.extractors import InceptionFeatures, load_extractor, located
from robustguide.checkpoints.keys_dinov2 import to_ours
from robustguide.classifiers.clip import clip
from robustguide.interfaces import from_pixels
from robustguide.metrics.extractor import Identity
from robustguide.metrics.protocols import protocol
from robustguide.nets import FIDInception

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
WIDTH = 32
TINY = {"embed_dim": WIDTH, "num_heads": 2, "depth": 2}
VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
NAMES = ["tench", "golden retriever", "Band Aid"]


def pixels(count, height, width, channels=3):
    """Flat regions and edges; noise alone is averaged away."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 9, 7, generator=generator) * 255
    images = F.interpolate(coarse, (height, width), mode="nearest")
    return (images + 8 * torch.randn(images.shape, generator=generator)).clamp(0, 255).byte()


def of_pillow(image, side):
    """Bytes (c, h, w) in colour, resized by Pillow, as an array (side, side, 3)."""
    coloured = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    return np.asarray(coloured.resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """The published layout, in a folder of its own; He's scale keeps activations of order one."""
    path = tmp_path_factory.mktemp("weights") / INCEPTION
    torch.manual_seed(0)
    net = FIDInception()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif not name.endswith("num_batches_tracked"):
                tensor.uniform_(0.7, 1.3) if "var" in name else tensor.add_(0.1)
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def adm(inception):
    """By the path of its weights, which are not the published ones."""
    return load_extractor(protocol("adm"), str(inception))


def test_inception_from_bytes_of_another_size_is_torch_fidelitys(adm, inception):
    theirs = FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception)
    )
    images = pixels(2, 80, 64)
    found = adm(images)
    pool3, logits = theirs(images)
    assert pool3.std(0).mean() > 1e-2  # images are told apart
    assert_close(found["pool3"], pool3, rtol=1e-5, atol=1e-6)
    assert_close(found["logits"], logits, rtol=1e-5, atol=1e-5)
    dims = {layer: features.shape[1] for layer, features in found.items()}
    assert dims == {"pool3": 2048, "spatial": 2023, "logits": 1008}
    assert all(f.dtype == torch.float32 and not f.requires_grad for f in found.values())


def test_features_depend_on_the_image_alone(adm):
    """Not on the batch, on autocast, on the default dtype or on train mode."""
    images = pixels(2, 70, 70, channels=1)
    want = adm(images)
    alone = adm(images[:1])
    coloured = adm(images[:1].expand(-1, 3, -1, -1).contiguous())
    adm.train()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            disturbed = adm(images)
    finally:
        torch.set_default_dtype(torch.float32)
    for layer, features in want.items():
        assert torch.equal(disturbed[layer], features)
        assert_close(alone[layer], features[:1], rtol=1e-5, atol=1e-5)
        assert_close(coloured[layer], features[:1], rtol=1e-5, atol=1e-5)


def test_clean_resizes_otherwise(adm):
    identity = replace(adm.identity, resize=protocol("clean").resize)
    assert not identity.agrees(adm.identity)
    clean = InceptionFeatures(adm.net, identity, ["pool3"])
    images = pixels(1, 64, 64)
    found = clean(images)
    assert list(found) == ["pool3"]
    assert (found["pool3"] - adm(images)["pool3"]).norm() > 0.01 * found["pool3"].norm()
    planes = [Image.fromarray(plane.float().numpy()) for plane in images[0]]
    resized = [np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)) for p in planes]
    shown = torch.from_numpy(np.stack(resized)).clamp(0, 255)[None]
    with torch.no_grad():
        want = adm.net.features((shown - 128) / 128)
    assert_close(found["pool3"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adm", "edm", "clean", "fd-dinov2-edm2", "clip-score"])
def test_missing_weights_name_the_file_the_folder_and_the_command(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(tmp_path / "nothing"))
    of = card(protocol(name).weights)
    with pytest.raises(FileNotFoundError) as error:
        load_extractor(protocol(name), class_names=NAMES)
    for told in (of.file, str(tmp_path / "nothing"), f"robustguide fetch {of.name}"):
        assert told in str(error.value)
    with pytest.raises(FileNotFoundError, match=rf"gone.pth .*`robustguide fetch {of.name}` gets"):
        load_extractor(protocol(name), str(tmp_path / "gone.pth"))


def test_a_file_of_another_hash_is_not_the_default(adm, inception, monkeypatch):
    """With the card's real hash, which random weights cannot have; nor do they agree with it."""
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(inception.parent))
    message = "not the file that card 'inception-fid' describes: .*6726825d.* give their path"
    for weights in (None, "inception-fid"):
        with pytest.raises(ValueError, match=message):
            load_extractor(protocol("adm"), weights)
    assert located(protocol("adm"), str(inception)).is_published is False
    assert adm.identity.network == "inception-2015-12-05 (other weights)"
    foreign = Identity("inception-2015-12-05", None, "tf1-bilinear-299")
    assert not adm.identity.agrees(foreign)
    assert replace(adm.identity, network=foreign.network).agrees(foreign)


def test_other_networks_are_refused_by_name(tmp_path):
    described = CLASSIFIERS["timed"]
    path = tmp_path / "classifier.safetensors"
    names = [str(y) for y in range(5)]
    module = build(described)
    export(module, path, described, class_names=names, shape=[1, 8, 8], weights="raw")
    with pytest.raises(ValueError, match=r"a network without a card, .* reads inception-fid"):
        load_extractor(protocol("adm"), str(path))
    with pytest.raises(ValueError, match="not known to hold a CLIP"):
        load_extractor(protocol("clip-score"), str(path))
    torch.save(module.state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match="do not fit the card 'inception-fid'"):
        load_extractor(protocol("adm"), str(tmp_path / "classifier.pth"))
    with pytest.raises(ValueError, match="not a DINOv2"):
        load_extractor(protocol("fd-dinov2-dgm"), str(tmp_path / "classifier.pth"))


@pytest.fixture
def dinov2(tmp_path, monkeypatch):
    """A small network in Meta's layout, positions of 518 pixels and all, and its card."""
    of = card("dinov2-vitl14")
    shelf = copy.deepcopy(of.specification)
    shelf["init_args"]["net"]["init_args"] |= TINY
    shelf["init_args"]["num_classes"] = WIDTH
    changed = replace(of, specification=shelf, parameters=None, sha256=None, bytes=None)
    monkeypatch.setitem(cards(), "dinov2-vitl14", changed)
    torch.manual_seed(0)
    net = timm.create_model("vit_large_patch14_dinov2", num_classes=0, img_size=518, **TINY)
    tensors = {name: 0.5 * torch.randn_like(tensor) for name, tensor in net.state_dict().items()}
    path = tmp_path / of.file
    torch.save(tensors | {"mask_token": torch.zeros(1, WIDTH)}, path)
    return changed, path, tensors


@torch.no_grad()
@pytest.mark.parametrize("name", ["fd-dinov2-edm2", "fd-dinov2-dgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_dinov2_is_timms_behind_the_published_resize(dinov2, name, channels):
    _, path, tensors = dinov2
    net = timm.create_model("vit_large_patch14_dinov2", num_classes=0, img_size=224, **TINY).eval()
    net.load_state_dict(to_ours(tensors, prefix=""))
    images = pixels(2, 96, 96, channels)
    if name == "fd-dinov2-edm2":
        shown = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True)
        shown = shown.expand(-1, 3, -1, -1)
    else:
        resized = np.stack([of_pillow(image, 224) for image in images])
        shown = torch.from_numpy(resized).permute(0, 3, 1, 2).float()
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    want = net((shown / 255 - mean) / std)
    assert (want[0] - want[1]).norm() > 0.01 * want[0].norm()
    found = load_extractor(protocol(name), str(path))(images)
    assert list(found) == ["cls"]
    assert_close(found["cls"], want, rtol=1e-4, atol=1e-4)


def test_published_weights_agree_with_foreign_statistics_and_others_do_not(dinov2, monkeypatch):
    """Also once they are converted, and by whichever name they are given."""
    of, path, tensors = dinov2
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(path.parent))
    of = replace(of, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(cards(), of.name, of)
    edm2, dgm = protocol("fd-dinov2-edm2"), protocol("fd-dinov2-dgm")
    foreign = Identity("dinov2-vitl14", None, "pil-bicubic-224")
    found = load_extractor(dgm).identity
    assert found.digest is not None and found.agrees(foreign)
    assert replace(foreign, digest=found.digest) == found
    assert not load_extractor(edm2).identity.agrees(found)
    converted = convert(of, path)
    assert located(dgm).file == converted  # which is the default from now on
    for weights in (None, of.name, str(path), str(converted)):
        assert located(dgm, weights).is_published
        assert load_extractor(dgm, weights).identity == found
    tensors["norm.bias"] += 1
    changed = path.parent / "other" / of.file
    changed.parent.mkdir()
    torch.save(tensors, changed)
    for weights in (changed, convert(of, changed, changed.parent / "other.safetensors")):
        other = load_extractor(dgm, str(weights)).identity
        assert other.network == "dinov2-vitl14 (other weights)"
        assert not other.agrees(foreign) and not other.agrees(found)


def test_dinov2_is_known_by_what_its_file_holds(dinov2):
    """Not by positions that are computed on reading, in the last bits differently by machine."""
    of, path, tensors = dinov2
    found = load_extractor(protocol("fd-dinov2-dgm"), str(path)).identity
    assert found.network == "dinov2-vitl14" and found.resize == "pil-bicubic-224"
    converted = convert(of, path, path.parent / "tiny.safetensors")
    assert load_extractor(protocol("fd-dinov2-dgm"), str(converted)).identity == found
    for name in ("pos_embed", "blocks.1.mlp.fc2.bias"):
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        changed[name].view(-1)[0] += 1
        torch.save(changed, path.parent / "changed.pth")
        other = load_extractor(protocol("fd-dinov2-dgm"), str(path.parent / "changed.pth"))
        assert not other.identity.agrees(found)


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory):
    """A small CLIP of the library, and the file of its weights."""
    torch.manual_seed(0)
    model = clip(VIT).eval()
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(model.state_dict(), path)
    return model, path


@pytest.fixture(scope="module")
def cosine(whole_clip):
    """Of images and the texts of three names."""
    _, path = whole_clip
    return load_extractor(protocol("clip-score"), str(path), NAMES, architecture=VIT)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_the_cosine_is_open_clips(whole_clip, cosine, channels):
    model, _ = whole_clip
    images, y = pixels(4, 60, 60, channels), torch.tensor([2, 0, 1, 2])
    prepare = open_clip.transform.image_transform(32, is_train=False)
    coloured = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    shown = torch.stack([prepare(Image.fromarray(image)) for image in coloured])
    texts = open_clip.tokenize([f"a photo of a {NAMES[label]}." for label in y])
    features = model.encode_image(shown, normalize=True)
    want = (features * model.encode_text(texts, normalize=True)).sum(-1, keepdim=True)
    assert want.std() > 1e-2
    assert_close(cosine(images, y)["cosine"], want, rtol=1e-4, atol=1e-5)


def test_a_clip_is_known_by_its_weights_and_its_texts(whole_clip, cosine, tmp_path):
    model, path = whole_clip

    def identity(file=path, names=NAMES):
        return load_extractor(protocol("clip-score"), str(file), names, architecture=VIT).identity

    found = cosine.identity
    assert found.resize == "pil-bicubic-32"
    assert not found.agrees(identity(names=[*NAMES[:2], "bandage"]))
    state = model.state_dict()
    text = {**state, "text_projection": state["text_projection"] + 1}
    torch.save(text, tmp_path / "text.pt")  # the image network is the same
    assert not found.agrees(identity(tmp_path / "text.pt"))


@pytest.mark.parametrize("y", [None, torch.tensor([3]), torch.tensor([-1])])
def test_labels_without_a_text_are_refused(cosine, y):
    with pytest.raises(ValueError, match=r"texts of their labels, 0 to 2; got (none|labels from)"):
        cosine(pixels(1, 32, 32), y)


def test_a_clip_without_names_or_architecture_is_refused(whole_clip):
    _, path = whole_clip
    with pytest.raises(ValueError, match="give `class_names`, one for each label"):
        load_extractor(protocol("clip-score"), str(path), architecture=VIT)
    other = {**VIT, "embed_dim": 16}
    with pytest.raises(ValueError, match="do not fit the CLIP"):
        load_extractor(protocol("clip-score"), str(path), NAMES, architecture=other)
    other = replace(protocol("clip-score"), weights=None)
    with pytest.raises(ValueError, match=r"not known to hold a CLIP; .*`architecture`"):
        load_extractor(other, str(path), NAMES)


def test_a_clip_that_brings_its_texts_reads_those_alone(whole_clip, cosine, tmp_path):
    """As `robustguide convert` writes it; of its text network only the features are left."""
    _, path = whole_clip
    shelf = clip_classifier(VIT, NAMES, weights=str(path))
    file = tmp_path / "converted.safetensors"
    told = dict(class_names=NAMES, shape=[3, 32, 32], weights="raw")
    export(shelf, file, shelf.metadata.specification, **told)
    images, y = pixels(3, 40, 40), torch.tensor([1, 2, 0])
    for names in (None, NAMES):
        found = load_extractor(protocol("clip-score"), str(file), names)
        assert torch.equal(found(images, y)["cosine"], cosine(images, y)["cosine"])
    with pytest.raises(ValueError, match=r"texts of 3 classes, tench, .* for these 1 names give"):
        load_extractor(protocol("clip-score"), str(file), ["tench"])


def test_a_card_tells_the_architecture_and_prefers_the_file_that_knows_all_texts(
    whole_clip, cosine, tmp_path, monkeypatch
):
    _, path = whole_clip
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(tmp_path))
    shelf = clip_classifier(VIT, ["hay", "rapeseed"], weights=str(path))
    told = dict(class_names=["hay", "rapeseed"], shape=[3, 32, 32], weights="raw")
    export(shelf, tmp_path / "clip-rn50.safetensors", shelf.metadata.specification, **told)
    tiny = replace(card("clip-rn50"), specification=shelf.metadata.specification, file="tiny.pt")
    monkeypatch.setitem(cards(), "clip-rn50", tiny)
    with pytest.raises(ValueError, match=r"texts of 2 classes, .* give tiny.pt itself"):
        load_extractor(protocol("clip-score"), "clip-rn50", NAMES)
    (tmp_path / "tiny.pt").write_bytes(path.read_bytes())
    assert load_extractor(protocol("clip-score"), "clip-rn50", NAMES).identity == cosine.identity


@pytest.fixture
def trained(tmp_path):
    """A classifier whose logits are computed by attention, as those of the demonstration's."""
    described = CLASSIFIERS["timed"]
    path = tmp_path / "classifier.safetensors"
    torch.manual_seed(0)
    names = [str(y) for y in range(5)]
    export(build(described), path, described, class_names=names, shape=[1, 8, 8], weights="raw")
    return path


@torch.no_grad()
def test_a_classifier_of_ones_own(trained):
    images = pixels(2, 8, 8, channels=1)
    own = load_extractor(protocol("classifier_features"), str(trained), head="net.out.2.c_proj")
    found = own(images)
    assert list(found) == ["features"]
    classifier = load_classifier(str(trained))
    layer = classifier.get_submodule("net.out.2.c_proj")
    read = found["features"].reshape(len(images), -1, layer.in_channels)
    logits = classifier(from_pixels(images), torch.zeros(2))
    assert_close(layer(read)[:, 0], logits)
    judge = load_extractor(protocol("class-accuracy"), str(trained))
    assert torch.equal(judge(images)["logits"], logits)
    assert judge.identity.network == "judge" and not judge.identity.agrees(own.identity)


def test_the_demonstrations_networks_lie_where_their_commands_write_them_or_ship(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"runs/demo/features/.*`robustguide demo` trains"):
        load_extractor(protocol("digits_features"))
    found = load_extractor(protocol("fashion_mnist_features"))
    assert found.identity.network == "fashion_mnist_features"
    assert found.layer == "net.out.2.c_proj"


def test_a_protocol_without_weights_asks_for_them():
    with pytest.raises(ValueError, match="'class-accuracy' reads a network of yours; give"):
        load_extractor(protocol("class-accuracy"))


def test_extractors_can_be_copied(cosine, dinov2):
    images, y = pixels(2, 32, 32), torch.tensor([0, 1])
    for extractor in (cosine, load_extractor(protocol("fd-dinov2-dgm"), str(dinov2[1]))):
        for twin in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
            found, want = twin(images, y), extractor(images, y)
            assert all(torch.equal(found[layer], want[layer]) for layer in want)
            assert twin.identity == extractor.identity
