"""Sums by noise level, and features of all levels at once."""

from dataclasses import replace

import pytest
import torch

from robustguide.callbacks.trajectory import Along, MeanByNoise, features_of
from robustguide.interfaces import to_pixels
from robustguide.metrics.extractor import Extractor, Identity
from robustguide.metrics.frechet import Moments, frechet_distance
from robustguide.metrics.protocols import protocol
from robustguide.metrics.reference import Provenance, Reference

CPU = torch.device("cpu")


class Corners(Extractor):
    """Three pixels as features, and how like a label the first one is; counts its rows."""

    def __init__(self):
        super().__init__(Identity("corners", "0", "none"))
        self.rows = []

    def features(self, pixels, y):
        self.rows.append(len(pixels))
        corners = pixels[:, 0, 0, :3].double() / 255
        cosine = torch.cos(corners[:, :1] + y[:, None])
        return {"pool3": corners, "cosine": cosine}


@pytest.fixture
def images():
    """Predicted clean images (levels, n, c, h, w), some of them beyond 1."""
    generator = torch.Generator().manual_seed(0)
    return 0.8 * torch.randn(4, 11, 1, 2, 3, generator=generator)


Y = torch.arange(11) % 3


def followed(sums, images, size, finished=None):
    """Two batches, the last one uneven; the extractor tells how it was asked."""
    extractor = Corners()
    for rows in (slice(0, 7), slice(7, 11)):
        pixels = to_pixels(images[0, rows] if finished is None else finished[rows])
        layers = features_of(Corners(), pixels, Y[rows], 11)
        sums.add(sums.read(extractor, images[:, rows], Y[rows], size, pixels, layers))
    return extractor.rows


def test_the_mean_of_each_level_is_that_of_its_images(images):
    """All levels in calls of at most 6 rows."""
    sums = Along.of(protocol("clip-score"), None, 4, CPU)
    rows = followed(sums, images, 6)
    assert sums.name == "clip_score"
    assert sum(rows) == 44 and max(rows) == 6 and len(rows) == 8
    for level, found in zip(images, sums.compute(), strict=True):
        expected = features_of(Corners(), to_pixels(level), Y, 11)["cosine"].double().mean()
        assert found == pytest.approx(float(expected), rel=1e-12)


def test_what_is_finished_is_not_read_again(images):
    """Where the last level holds the finished images, as bytes; the numbers do not tell."""
    for levels in (4, 1):
        again, once = (Along.of(protocol("clip-score"), None, levels, CPU) for _ in range(2))
        assert sum(followed(again, images[:levels], 6, 1 - images[-1])) == 11 * levels
        rows = followed(once, images[:levels], 6, images[levels - 1].clamp(-1, 1))
        assert sum(rows) == 11 * (levels - 1)
        assert again.compute() == pytest.approx(once.compute(), rel=1e-12)


def test_the_distance_of_each_level_is_that_of_its_images(images):
    real = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    identity = Identity("corners", "0", "none")
    moments = {"pool3": Moments.of(real)}
    reference = Reference("edm", identity, Provenance("noise"), moments, {})
    sums = Along.of(protocol("edm"), reference, 4, CPU)
    assert sums.name == "fid"
    followed(sums, images, 5)
    for level, found in zip(images, sums.compute(), strict=True):
        features = features_of(Corners(), to_pixels(level), Y, 11)["pool3"]
        expected = frechet_distance(Moments.of(features), moments["pool3"])
        assert found == pytest.approx(expected, rel=1e-9)


def test_the_first_additive_number_is_followed():
    """Of ADM's, FID; nothing of a judge's accuracy, nor where no level is watched."""
    identity, moments = Identity("corners", "0", "none"), {"pool3": Moments.of(torch.randn(9, 3))}
    reference = Reference("adm", identity, Provenance("noise"), moments, {})
    turned = replace(protocol("adm"), measures=protocol("adm").measures[::-1])
    moments["spatial"] = Moments.of(torch.randn(9, 2))
    assert Along.of(protocol("adm"), reference, 3, CPU).name == "fid"
    assert Along.of(turned, reference, 3, CPU).name == "sfid"
    assert Along.of(protocol("class-accuracy"), None, 3, CPU) is None
    assert Along.of(protocol("adm"), reference, 0, CPU) is None


def test_a_level_that_was_not_seen_has_no_mean():
    metric = MeanByNoise(2)
    metric.update(torch.tensor([[1.0], [2.0]]), 1)
    first, second = metric.compute()
    assert first != first and second == 1.5
