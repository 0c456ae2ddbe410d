"""What the words of a command line mean, and what does not fit the data."""

import sys
import types

import latent
import pytest
import tiny
import torch
import yaml
from oracles import ExactDenoiser, plane

from robustguide.guidance import AtDenoised, AtState
from robustguide.interfaces import Classifier
from robustguide.plans import atlas, columns
from robustguide.plans.columns import Word
from robustguide.plans.ranking import Parts

LEVELS, NAMES, SHAPE = (0.5, 1.0), list("0123456789"), (1, 8, 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny.exported(folder / "classifier.safetensors", tiny.classifier())
    tiny.exported(folder / "denoiser.safetensors", tiny.denoiser())
    return folder


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("plain=runs/a.safetensors", Word("plain", "runs/a.safetensors", None)),
        ("runs/plain/classifier.safetensors@denoised", None),
        ("runs/x=1/a.safetensors", Word("a", "runs/x=1/a.safetensors", None)),
        ("card:resnet50@through", Word("resnet50", "card:resnet50", "through")),
        ("a=me@home/b.yaml", Word("a", "me@home/b.yaml", None)),
    ],
)
def test_words_are_taken_apart(text, want):
    want = want or Word("plain", "runs/plain/classifier.safetensors", "denoised")
    assert columns.read(text) == want


@pytest.mark.parametrize("text", ["", "=", "a=", "=b.safetensors", "a=@denoised"])
def test_words_without_a_classifier_are_refused(text):
    with pytest.raises(ValueError, match="names no classifier; give NAME=FILE"):
        columns.read(text)


def test_names_are_told_apart():
    with pytest.raises(ValueError, match="'a' is taken"):
        columns.named(["a=b.safetensors", "c/a.safetensors"])
    with pytest.raises(ValueError, match="'classifier-free' is taken"):
        columns.named(["classifier-free=b.safetensors"])


def made(words, denoiser=None, shape=SHAPE, names=NAMES):
    said = None if denoiser is None else columns.loading("denoiser", str(denoiser))
    asked = [columns.candidate(each, said, 1.0, []) for each in columns.named(words)]
    return columns.columns(asked, LEVELS, shape, names, Parts())


def test_files_yamls_and_views_become_terms_that_share_networks(files, tmp_path):
    file = files / "classifier.safetensors"
    smooth = tmp_path / "own.yaml"
    smooth.write_text(yaml.safe_dump({"classifier": tiny.loaded("classifier", file)}))
    words = [f"a={file}", f"b={file}@denoised", f"c={smooth}@through"]
    a, b, c = made(words, files / "denoiser.safetensors")
    assert [each.name for each in (a, b, c)] == ["a", "b", "c"]
    assert type(a.terms[0].view) is AtState and type(b.terms[1].view) is AtDenoised
    assert a.denoiser is None and b.denoiser is c.denoiser and c.terms[0].needs_graph
    assert len(a.terms) == 2 and a.terms[0] is a.terms[1]
    assert a.terms[0].classifier is b.terms[0].classifier
    assert b.clip(0) == 1.0


def test_a_configuration_brings_its_own_denoiser_and_view(files, tmp_path):
    config = tiny.generation(files / "denoiser.safetensors")
    term = tiny.guided(files / "classifier.safetensors")
    term["init_args"]["term"]["init_args"]["view"] = tiny.spec("guidance.AtDenoised")
    config["model"]["init_args"]["guidance"] = {"robust": term}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    (column,) = made([f"mine={file}"])
    assert column.name == "mine" and type(column.terms[0].view) is AtDenoised
    assert column.denoiser is not None and column.clip(0) == 1.0


def test_a_classifier_of_images_is_differentiated_at_latents(tmp_path):
    said = tiny.spec(
        "classifiers.Decoded", classifier=tiny.classifier(), codec=latent.codec_spec()
    )
    file = tmp_path / "decoded.yaml"
    file.write_text(yaml.safe_dump({"classifier": said}))
    (column,) = made([f"a={file}"], shape=latent.LATENTS)
    classifier = column.terms[0].classifier
    for parameter in classifier.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # the last layer is 0 at first
    x = latent.images(3, latent.LATENTS).requires_grad_()
    y = torch.tensor([0, 4, 9])
    found = atlas.gradients([column], 0, LEVELS[0], x.detach(), y)["a"]
    sigma = torch.full((3,), LEVELS[0])
    logits = classifier.classifier(classifier.codec.decode(x), sigma)
    log_p = logits.log_softmax(-1)[torch.arange(3), y]
    (want,) = torch.autograd.grad(log_p.sum(), x)
    assert want.abs().amax((1, 2, 3)).min() > 0
    torch.testing.assert_close(found, want)
    with pytest.raises(ValueError, match=r"a: the classifier reads images of .* have 1 x 8 x 8"):
        made([f"a={file}"])


def test_what_does_not_fit_is_refused(files, tmp_path):
    file = files / "classifier.safetensors"
    with pytest.raises(ValueError, match="a looks at the denoised image, which nobody makes"):
        made([f"a={file}@denoised"])
    with pytest.raises(ValueError, match="a: the classifier reads images of 1 x 8 x 8, the data"):
        made([f"a={file}"], shape=(3, 8, 8))
    with pytest.raises(ValueError, match="a: the classifier knows 10 classes, the data have 3"):
        made([f"a={file}"], names=list("012"))
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("trainer: {}")
    with pytest.raises(ValueError, match="neither `classifier` nor `model`"):
        made([f"a={nothing}"])
    nothing.write_text("model: {class_path: a.B}")
    with pytest.raises(ValueError, match="leave out @denoised"):
        made([f"a={nothing}@denoised"], files / "denoiser.safetensors")


class Blind(Classifier):
    """Its graph ends before the image."""

    num_classes = 10

    def forward(self, x, sigma):
        return x.detach().flatten(1)[:, :10]


def test_a_classifier_without_a_gradient_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "blind", types.SimpleNamespace(Blind=Blind))
    file = tmp_path / "blind.yaml"
    file.write_text(yaml.safe_dump({"classifier": {"class_path": "blind.Blind"}}))
    with pytest.raises(ValueError, match=r"a needs a gradient of the classifier \(Blind\)"):
        made([f"a={file}"])


def test_a_denoiser_must_fit_and_know_labels():
    mixture = plane()
    exact, shape = ExactDenoiser(mixture), (1, 1, 2)
    assert columns.classifier_free(exact, LEVELS, shape, list("abc")).denoiser is exact
    assert columns.classifier_free(ExactDenoiser(mixture, False), LEVELS, shape, "abc") is None
    with pytest.raises(ValueError, match="makes images of 1 x 1 x 2, the data have 1 x 8 x 8"):
        columns.classifier_free(exact, LEVELS, (1, 8, 8), "abc")
    with pytest.raises(ValueError, match="knows 3 classes, the data have 2"):
        columns.classifier_free(exact, LEVELS, shape, "ab")
