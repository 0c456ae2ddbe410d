"""Sums of different methods against their closed forms, and what they cost together.

Each row of `COMBINATIONS` has terms and the image that they must make of the exact denoised images
D (of the label), U (of the null label) and W (of a weaker network), to 1e-10. The gradient of the
exact classifier is D - U over sigma**2, that of log p(x, y) is D - x over sigma**2. The rows are
listed in docs/guidance.md.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import ExactClassifier, ExactDenoiser, Mixture, noisy, tilted
from torch import Tensor
from torch.testing import assert_close

from robustguide.guidance import (
    AtState,
    Autoguidance,
    Averaged,
    ClassifierFree,
    ClassifierGuidance,
    Confused,
    FullSum,
    GradientFree,
    Guided,
    Matched,
    Null,
    Own,
    RawLogit,
    Scaled,
    Switched,
    Tempered,
    Within,
)
from robustguide.interfaces import Place

LEVELS = (0.3, 1.0, 4.0)
PAGE = Path(__file__).parents[2] / "docs" / "guidance.md"


class World:
    """Exact networks of a mixture, which count their calls."""

    def __init__(self, classes):
        self.mixture = tilted(classes)
        blur = 0.5 * torch.eye(self.mixture.covariances.shape[-1])
        worse = Mixture(self.mixture.means, self.mixture.covariances + blur, self.mixture.priors)
        self.denoiser, self.weak = ExactDenoiser(self.mixture), ExactDenoiser(worse)
        self.classifier = ExactClassifier(self.mixture)

    def gradient(self, **arguments):
        return ClassifierGuidance(self.classifier, **arguments)

    def confused(self, **arguments):
        return Confused(self.classifier, view=AtState(), threshold=1.0, **arguments)


@dataclass
class Images:
    """What the networks say at a state."""

    x: Tensor
    sigma: float
    label: Tensor
    null: Tensor
    weak: Tensor
    all_classes: Tensor  # of every class (k, b, ...)
    weak_classes: Tensor
    p: Tensor
    y: Tensor

    @property
    def gap(self):
        return self.label - self.null

    @property
    def to_mode(self):
        return self.label - self.x

    def of(self, images, labels):
        return images[labels, torch.arange(len(labels))]

    @property
    def rival(self):
        """The most probable class but the label."""
        return self.p.scatter(1, self.y[:, None], -1).argmax(-1)


def tempered(it):
    """sigma**2 times the gradient of f_y - log sum exp(f / 2)."""
    q = it.p.sqrt() / it.p.sqrt().sum(-1, keepdim=True)
    pulls = it.all_classes - it.x
    return it.to_mode - 0.5 * torch.einsum("bk,kb...->b...", q, pulls)


COMBINATIONS: dict[str, Any] = {
    "classifier-free + classifier": (
        lambda w: {"a": Scaled(ClassifierFree(), 0.7), "b": Scaled(w.gradient(), 1.3)},
        lambda it: it.label + 2.0 * it.gap,
        (2, 0, 1),
    ),
    "classifier-free + raw logit": (
        lambda w: {
            "a": Scaled(ClassifierFree(), 0.7),
            "b": Scaled(w.gradient(objective=RawLogit()), 0.2),
        },
        lambda it: it.label + 0.7 * it.gap + 0.2 * it.to_mode,
        (2, 0, 1),
    ),
    "classifier-free + tempered classifier": (
        lambda w: {
            "a": Scaled(ClassifierFree(), 0.5),
            "b": Scaled(w.gradient(objective=Tempered(1.0, 0.5)), 0.4),
        },
        lambda it: it.label + 0.5 * it.gap + 0.4 * tempered(it),
        (2, 0, 1),
    ),
    "classifier-free + autoguidance": (
        lambda w: {"a": Scaled(ClassifierFree(), 0.7), "b": Scaled(Autoguidance(w.weak), 1.5)},
        lambda it: it.label + 0.7 * it.gap + 1.5 * (it.label - it.weak),
        (2, 1, 0),
    ),
    "classifier + autoguidance": (
        lambda w: {"a": Scaled(w.gradient(), 0.7), "b": Scaled(Autoguidance(w.weak), 1.5)},
        lambda it: it.label + 0.7 * it.gap + 1.5 * (it.label - it.weak),
        (1, 1, 1),
    ),
    "full sum + classifier": (
        lambda w: {
            "a": Scaled(FullSum(w.classifier, view=AtState()), 0.5),
            "b": Scaled(w.gradient(), 0.25),
        },
        lambda it: it.label + 0.75 * it.gap,
        (4, 0, 2),
    ),
    "classifier-free, asked for the confused class": (
        lambda w: {"a": Scaled(ClassifierFree(w.confused(strength=0.0, otherwise=Null())), 0.5)},
        lambda it: it.label + 0.5 * (it.label - it.of(it.all_classes, it.rival)),
        (2, 0, 1),
    ),
    "autoguidance, asked for the confused class": (
        lambda w: {
            "a": Scaled(Autoguidance(w.weak, w.confused(strength=0.0, otherwise=Own())), 0.5)
        },
        lambda it: it.label + 0.5 * (it.label - it.of(it.weak_classes, it.rival)),
        (1, 1, 1),
    ),
    "gradient-free + classifier-free": (
        lambda w: {
            "a": Scaled(GradientFree(w.confused()), 0.5),
            "b": Scaled(ClassifierFree(), 0.25),
        },
        lambda it: (
            it.label
            + 0.5
            * (1 - it.p.gather(1, it.y[:, None])).reshape(-1, 1, 1, 1)
            * (it.label - it.of(it.all_classes, it.rival))
            + 0.25 * it.gap
        ),
        (3, 0, 1),
    ),
    "matched classifier + classifier-free": (
        lambda w: {
            "a": Scaled(Matched(w.gradient(), ClassifierFree(), ratio=0.5), 2.0),
            "b": Scaled(ClassifierFree(), 0.25),
        },
        lambda it: it.label + 1.25 * it.gap,  # the exact gradient has the gap's direction
        (2, 0, 1),
    ),
    "averaged raw logit + classifier-free": (
        lambda w: {
            "a": Scaled(Averaged(w.gradient(objective=RawLogit()), std=0.5, count=2), 0.25),
            "b": Scaled(ClassifierFree(), 0.5),
        },
        lambda it: it.label + 0.25 * it.to_mode + 0.5 * it.gap,  # linear: moves change nothing
        (2, 0, 2),
    ),
    "switched classifier + autoguidance": (
        lambda w: {
            "a": Switched(w.gradient(), Scaled(w.gradient(objective=RawLogit()), 0.5), sigma=0.8),
            "b": Scaled(Autoguidance(w.weak), 0.5),
        },
        lambda it: (
            it.label
            + (it.gap if it.sigma > 0.8 else 0.5 * it.to_mode)
            + 0.5 * (it.label - it.weak)
        ),
        (1, 1, 1),
    ),
    "three terms in three intervals": (
        lambda w: {
            "a": Within(Scaled(w.gradient(), 2.0), sigma_min=1.0),
            "b": Within(Scaled(ClassifierFree(), 0.5), sigma_min=0.5, sigma_max=5.0),
            "c": Within(Scaled(Autoguidance(w.weak), 0.5), sigma_max=0.5),
        },
        lambda it: (
            it.label
            + (2.0 * it.gap if it.sigma > 1 else 0)
            + (0.5 * it.gap if 0.5 < it.sigma <= 5 else 0)
            + (0.5 * (it.label - it.weak) if it.sigma <= 0.5 else 0)
        ),
        None,
    ),
}


def measured(world, sigma):
    """A state, and what the networks say of it."""
    x, sigmas, y = noisy(world.mixture, [sigma] * 5)

    def of_class(network, k):
        return network(x, sigmas, torch.full_like(y, k))

    count = len(world.mixture)
    images = Images(
        x=x,
        sigma=sigma,
        label=world.denoiser(x, sigmas, y),
        null=world.denoiser(x, sigmas, world.denoiser.null(y)),
        weak=world.weak(x, sigmas, y),
        all_classes=torch.stack([of_class(world.denoiser, k) for k in range(count)]),
        weak_classes=torch.stack([of_class(world.weak, k) for k in range(count)]),
        p=world.mixture.log_joint(x, sigmas).softmax(-1),
        y=y,
    )
    for network in (world.denoiser, world.weak, world.classifier):
        network.calls.clear()
    return images, sigmas


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_is_its_closed_form(name, sigma):
    world = World(classes=4)
    terms, expected, cost = COMBINATIONS[name]
    images, sigmas = measured(world, sigma)
    guided = Guided(world.denoiser, terms(world))
    got = guided.predict(images.x, sigmas, images.y, Place(sigma=sigma)).denoised
    assert_close(got, expected(images), rtol=1e-10, atol=1e-10)
    rows = [
        sum(network.calls) / len(images.y)
        for network in (world.denoiser, world.weak, world.classifier)
    ]
    if cost is not None:
        assert rows == list(cost)
    else:  # the middle term from 0.5 to 5, the first above 1, the last below 0.5
        assert rows == [1 + (sigma > 0.5), sigma <= 0.5, sigma > 1]


@pytest.mark.parametrize("sigma", LEVELS)
def test_two_classes_make_gradient_free_guidance_a_classifier(sigma):
    """So it adds to a classifier as a classifier does; gap = p_r (D_y - D_r)."""
    world = World(classes=2)
    images, sigmas = measured(world, sigma)
    terms = {
        "a": Scaled(GradientFree(world.confused()), 0.5),
        "b": Scaled(world.gradient(), 0.25),
    }
    got = Guided(world.denoiser, terms)(images.x, sigmas, images.y)
    assert_close(got, images.label + 0.75 * images.gap, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", LEVELS)
def test_clipping_lies_between_reference_terms_and_score_terms(sigma):
    world = World(classes=4)
    images, sigmas = measured(world, sigma)
    terms = {"a": Scaled(ClassifierFree(), 0.7), "b": Scaled(world.gradient(), 1.3)}
    got = Guided(world.denoiser, terms, clip=0.5)(images.x, sigmas, images.y)
    moved = (images.label + 0.7 * images.gap).clamp(-0.5, 0.5)
    assert_close(got, moved + 1.3 * images.gap, rtol=1e-10, atol=1e-10)


def test_the_page_lists_what_is_checked():
    listed = re.findall(
        r"^\| ([^|]+?) \| `", PAGE.read_text().partition("## Combinations")[2], re.M
    )
    assert listed == list(COMBINATIONS)
