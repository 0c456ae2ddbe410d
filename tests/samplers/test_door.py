"""Sampling in one call."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, plane, tilted
from torch.testing import assert_close

from robustguide.denoisers import Unconditional
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Scaled
from robustguide.interfaces import Denoiser
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import DDIM, Ancestral, Heun, Large, SeededNoise, sample

LABELS, SEEDS = [0, 1, 2, 3, 0, 2], [5, 0, 11, 3, 8, 1000]
SAMPLERS = {
    "heun": Heun(RhoGrid(6)),
    "churn": Heun(RhoGrid(6), churn=3.0),
    "ancestral": Ancestral(ChainGrid(linear_levels(), "10"), variance=Large()),
    "ddim": DDIM(ChainGrid(linear_levels(), "ddim10"), clip=1.0, eta=0.7),
}


def images(labels, seeds, batch_size, sampler):
    """Guided samples of a mixture."""
    mixture = tilted()
    terms = {
        "free": Scaled(ClassifierFree(), 0.5),
        "classifier": Scaled(ClassifierGuidance(ExactClassifier(mixture)), 0.5),
    }
    denoiser = ExactDenoiser(mixture)
    return sample(
        denoiser, terms, labels=labels, seeds=seeds, sampler=sampler, batch_size=batch_size
    )


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler):
    whole = images(LABELS, SEEDS, 64, sampler)
    assert whole.shape == (6, 2, 2, 1)
    for batch_size in (1, 4):
        assert_close(images(LABELS, SEEDS, batch_size, sampler), whole, rtol=1e-5, atol=1e-5)
    alone = images(LABELS[3:4], SEEDS[3:4], 1, sampler)
    assert_close(alone, whole[3:4], rtol=1e-5, atol=1e-5)


def test_seeds_are_counted_from_zero():
    sampler = Heun(RhoGrid(4))
    denoiser = ExactDenoiser(plane())
    counted = sample(denoiser, labels=[0, 1, 2], sampler=sampler)
    assert torch.equal(
        counted, sample(denoiser, labels=[0, 1, 2], seeds=[0, 1, 2], sampler=sampler)
    )
    other = sample(denoiser, labels=[0, 1, 2], seeds=[3, 4, 5], sampler=sampler)
    assert not torch.equal(counted, other)


OTHER_PROCESS = """
import sys
sys.path[:0] = sys.argv[2:]
import torch
from test_door import half
torch.save(half(1), sys.argv[1])
"""


def half(which):
    """Noise, labels and images of the first or the last three."""
    rows = slice(3 * which, 3 * which + 3)
    results = {name: images(LABELS[rows], SEEDS[rows], 2, s) for name, s in SAMPLERS.items()}
    return {
        "noise": SeededNoise(SEEDS[rows]).draw((2, 2, 1)),
        "labels": LABELS[rows],
        "images": results,
    }


def test_two_processes_make_what_one_does(tmp_path):
    file, folder = tmp_path / "last.pt", Path(__file__).parent
    paths = [str(folder), str(folder.parent), str(folder.parent.parent)]
    command = [sys.executable, "-c", OTHER_PROCESS, str(file), *paths]
    subprocess.run(command, check=True, timeout=300)
    first, last = half(0), torch.load(file)
    noise = torch.cat([first["noise"], last["noise"]])
    assert torch.equal(noise, SeededNoise(SEEDS).draw((2, 2, 1)))
    assert first["labels"] + last["labels"] == LABELS
    for name, sampler in SAMPLERS.items():
        halves = torch.cat([first["images"][name], last["images"][name]])
        assert_close(halves, images(LABELS, SEEDS, 6, sampler), rtol=1e-5, atol=1e-5)


def test_images_lie_in_the_unit_range():
    """The clusters lie at up to 4."""
    got = sample(ExactDenoiser(plane()), labels=[1, 2] * 4, sampler=Heun(RhoGrid(6)))
    assert got.dtype == torch.float32
    assert got.abs().max() == 1.0


def test_the_null_label_is_one_of_those_a_denoiser_with_it_knows():
    denoiser = ExactDenoiser(plane())
    sampler = Heun(RhoGrid(6))
    null = sample(denoiser, labels=[3, 3], sampler=sampler)
    assert torch.equal(null, sample(Unconditional(denoiser), labels=[0, 1], sampler=sampler))


@pytest.mark.parametrize(
    ("has_null", "labels", "message"),
    [
        (True, [0, 4], r"0\.\.3.*4 among"),
        (False, [0, 3], r"0\.\.2.*3 among"),
        (True, [-1, 0], r"0\.\.3.*-1 among"),
        (True, [0], "each of the 2 seeds; got 1 labels"),
        (True, [0, 1, 2], "each of the 2 seeds; got 3 labels"),
    ],
)
def test_labels_outside_the_classes_or_of_another_number_are_refused(has_null, labels, message):
    with pytest.raises(ValueError, match=message):
        sample(ExactDenoiser(plane(), has_null), labels=labels, seeds=[0, 1])


@pytest.mark.parametrize("seeds", [None, []])
def test_no_labels_at_all_are_refused(seeds):
    with pytest.raises(ValueError, match=r"0\.\.3, at least one.*0 seeds; got 0 labels\."):
        sample(ExactDenoiser(plane()), labels=[], seeds=seeds)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        sample(ExactDenoiser(plane()), labels=[0], batch_size=batch_size)


def test_a_classifier_guides_to_no_null_label():
    term = Scaled(ClassifierGuidance(ExactClassifier(plane())), 2.0)
    denoiser = ExactDenoiser(plane())
    with pytest.raises(ValueError, match=r"3 is the null label, but term 'robust'.*in 0\.\.2"):
        sample(denoiser, {"robust": term}, labels=[0, 3])
    free = {"free": ClassifierFree()}
    assert sample(denoiser, free, labels=[0, 3], sampler=Heun(RhoGrid(2))).isfinite().all()


class Marginal(Denoiser):
    """E[x_0 | x] of a mixture, which has never heard of classes."""

    num_classes = 0

    def __init__(self, mixture):
        super().__init__()
        self.exact, self.shape = ExactDenoiser(mixture), mixture.shape

    def predict(self, x, sigma, y):
        return self.exact.predict(x, sigma, self.exact.null(y))


def test_a_network_without_classes_is_guided_by_a_classifier():
    """To the samples of the conditional denoiser, by Bayes' rule."""
    mixture, run = tilted(), {"labels": LABELS, "sampler": Heun(RhoGrid(6))}
    terms = {"robust": ClassifierGuidance(ExactClassifier(mixture))}
    with pytest.raises(ValueError, match=r"'robust'.* in Unconditional\(\.\.\., num_classes=4\)"):
        sample(Marginal(mixture), terms, **run)
    wrapped = Unconditional(Marginal(mixture), num_classes=4)
    guided = sample(wrapped, terms, **run)
    assert_close(guided, sample(ExactDenoiser(mixture), **run), rtol=1e-4, atol=1e-4)
    alone = sample(Marginal(mixture), **run | {"labels": [0] * 6})
    assert torch.equal(alone, sample(wrapped, **run))
