"""The package as a library: it loads late, and guides a network of the user's in ten lines."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import robustguide
from robustguide import load_classifier, load_denoiser, sample
from robustguide.__main__ import HELPERS
from robustguide.classifiers import Timed
from robustguide.denoisers import EpsDenoiser
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Scaled
from robustguide.noise import ChainGrid, linear_levels
from robustguide.samplers import DDIM, Ancestral, Heun

LAZY = """
import sys, robustguide
assert "torch" not in sys.modules and dir(robustguide)
assert robustguide.__version__ == "0.1.0" and "torch" not in sys.modules
from contextlib import suppress
from robustguide.__main__ import HELPERS, main
main([])
main(["--help"])
main(["--version"])
assert "torch" not in sys.modules and "lightning" not in sys.modules
for name in HELPERS:
    with suppress(SystemExit):
        main([name, "--help"])
    assert not {"torch", "lightning", "torchvision"} & sys.modules.keys(), name
for words in (["cards"], ["cards", "adm"]):
    main(words)
    assert not {"torch", "lightning", "torchvision"} & sys.modules.keys(), words
robustguide.sample
assert "torch" in sys.modules and "lightning" not in sys.modules
"""


def test_torch_is_imported_when_it_is_needed():
    done = subprocess.run(
        [sys.executable, "-c", LAZY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "robustguide COMMAND --help" in done.stdout and "\n0.1.0\n" in done.stdout
    assert all(f"usage: robustguide {name} " in done.stdout for name in HELPERS)


def test_there_is_nothing_else():
    assert robustguide.__all__ == ["load_classifier", "load_denoiser", "sample"]
    with pytest.raises(AttributeError, match=r"robustguide.*'nothing'"):
        _ = robustguide.nothing


class MyNet(nn.Module):
    """A user's network: the noise in an image of one known picture for each class."""

    def __init__(self, pictures):
        super().__init__()
        self.pictures = nn.Parameter(pictures)

    def forward(self, x_t, t, y):
        alpha_bar = torch.as_tensor(linear_levels(100).alpha_bars)[t.long()].float()
        scale = alpha_bar[:, None, None, None]
        mean = torch.cat([self.pictures, self.pictures.mean(0, keepdim=True)])[y]
        return (x_t - scale.sqrt() * mean) / (1 - scale).sqrt()


@pytest.fixture
def pictures():
    return torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


@pytest.mark.parametrize("kind", [DDIM, Ancestral])
def test_a_network_of_ones_own_is_sampled(kind, pictures):
    levels = linear_levels(100)
    denoiser = EpsDenoiser(MyNet(pictures), levels, num_classes=3, shape=(1, 4, 4))
    images = sample(
        denoiser, labels=[2, 0, 1, 3], sampler=kind(grid=ChainGrid(levels, "20")), batch_size=3
    )
    wanted = [pictures[2], pictures[0], pictures[1], pictures.mean(0)]
    torch.testing.assert_close(images, torch.stack(wanted), atol=2e-5, rtol=0)


def test_guidance_of_a_network_of_ones_own(pictures):
    """Classifier-free guidance of scale 1 moves the picture away from the mean by its distance."""
    levels = linear_levels(100)
    denoiser = EpsDenoiser(MyNet(0.4 * pictures), levels, num_classes=3, shape=(1, 4, 4))
    terms = {"away": Scaled(ClassifierFree(), scale=1.0)}
    images = sample(denoiser, terms, labels=[0, 1, 2], sampler=DDIM(grid=ChainGrid(levels, "20")))
    wanted = 0.4 * (2 * pictures - pictures.mean(0))
    torch.testing.assert_close(images, wanted, atol=2e-5, rtol=0)


def test_exported_networks_guide_without_lightning(runs):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    classifier = load_classifier(str(runs / "classifier/classifier.safetensors"))
    assert isinstance(denoiser, EpsDenoiser) and isinstance(classifier, Timed)
    labels, clean = list(range(10)), torch.zeros(10)
    agreement = []
    for scale in (0.0, 8.0):
        terms = {"classifier": Scaled(ClassifierGuidance(classifier), scale=scale)}
        images = sample(denoiser, terms, labels=labels, sampler=Heun(clip=1.0))
        assert images.shape == (10, 1, 8, 8) and images.abs().max() <= 1
        log_p = classifier(images, clean).log_softmax(-1)
        agreement.append(log_p[range(10), labels].mean())
    assert agreement[1] > agreement[0] + 0.5


def test_a_label_that_is_no_class_is_refused(runs):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    with pytest.raises(ValueError, match=r"0\.\.10.*11"):
        sample(denoiser, labels=[0, 11])
