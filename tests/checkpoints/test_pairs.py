"""Every pair of published denoisers and classifiers: works as it is, or with the wrapper named."""

from functools import cache

import pytest
import torch

from robustguide.cards import cards
from robustguide.checkpoints import load_classifier, load_denoiser
from robustguide.classifiers import Decoded, Resized
from robustguide.codecs import KLAutoencoder, StableDiffusionCodec
from robustguide.denoisers import Unconditional
from robustguide.guidance import ClassifierGuidance, Guided, Scaled


def representatives(kind):
    """One card for all that differ in nothing that a pair is judged by."""
    kinds = {}
    for card in cards().values():
        if card.kind == kind:
            kinds.setdefault((card.shape, card.classes, card.num_classes), card.name)
    return list(kinds.values())


@cache
def blank(load, name):
    """A card's network, without memory."""
    return load(card=name, device="meta")


def refusal(denoiser, classifier):
    try:
        Guided(denoiser, {"c": Scaled(ClassifierGuidance(classifier), 1.0)})
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", representatives("denoiser"))
def test_published_pairs(name):
    found = cards()[name]
    for other in representatives("classifier"):
        denoiser, classifier = blank(load_denoiser, name), blank(load_classifier, other)
        message = refusal(denoiser, classifier)
        same_images = classifier.reads(found.shape)
        same_classes = denoiser.num_classes == classifier.num_classes
        assert (message is None) == (same_images and same_classes), (other, message)
        if found.classes not in (None, cards()[other].classes):
            assert message is not None
            # images are looked at before the names of classes, and after their number
            assert "`labels`" in message or (same_classes and not same_images)
            continue
        if not denoiser.num_classes:
            assert "Unconditional" in message
            denoiser = Unconditional(denoiser, num_classes=classifier.num_classes)
            message = refusal(denoiser, classifier)
        channels = {found.shape[0], cards()[other].shape[0]}
        if 1 in channels and len(channels) > 1:  # no wrapper makes colours
            assert message is not None
            is_latent = found.shape[0] == 4
            assert is_latent or f"take a classifier of {found.shape[0]} channels" in message
            continue
        if found.shape[0] == 4 and message:
            assert "Decoded" in message
            with torch.device("meta"):
                codec = StableDiffusionCodec(KLAutoencoder(block_out_channels=[32, 32, 32, 32]))
            classifier = Decoded(classifier, codec)
            message = refusal(denoiser, classifier)
            if message:
                assert f"card {other!r}" in message and "inside Decoded in" in message
                classifier = Decoded(Resized(classifier.classifier), codec)
                message = refusal(denoiser, classifier)
        elif message:
            size = cards()[other].shape[-1]
            assert f"Resized(size={size})" in message and f"card {other!r}" in message
            message = refusal(denoiser, Resized(classifier, size))
        assert message is None, (other, message)
