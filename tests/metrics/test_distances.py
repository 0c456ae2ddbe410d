import math

import pytest
import torch

from robustguide.metrics import distances
from robustguide.metrics.distances import FrechetMeasure, without_each
from robustguide.metrics.extractor import Identity
from robustguide.metrics.frechet import Moments, Target, frechet_distance
from robustguide.metrics.jackknife import groups_of
from robustguide.metrics.protocol import Sampled
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.tables import Held


def features(n, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator) * torch.linspace(0.5, 2, dim) + seed


def reference(dim=6, layer="pool3"):
    identity = Identity("net", None, "none")
    moments = {layer: Moments.of(features(200, dim, seed=1))}
    return Reference("toy", identity, Provenance("toy"), moments, {})


def test_value_and_replicates_are_those_of_the_rows_left():
    rows, groups, real = features(103), groups_of(torch.arange(103)), reference()
    found = FrechetMeasure().measure(Sampled({"pool3": Held(rows)}, groups), real)
    assert found.keys() == {"fid"}
    fid, against = found["fid"], real.moments["pool3"]
    assert fid.value == pytest.approx(frechet_distance(Moments.of(rows), against), rel=1e-10)
    left = [frechet_distance(Moments.of(rows[groups != g]), against) for g in range(20)]
    assert fid.replicates == pytest.approx(left, rel=1e-10)
    assert fid.facts == {"n": 103, "dim": 6, "rank_deficient": False}


def test_fewer_images_than_features_are_told_of_and_still_exact():
    rows, groups = features(30, 40), groups_of(torch.arange(30), 5)
    found = FrechetMeasure("fd", "FD", "cls").measure(
        Sampled({"cls": Held(rows)}, groups), reference(40, "cls")
    )["fd"]
    against = reference(40, "cls").moments["cls"]
    left = [frechet_distance(Moments.of(rows[groups != g]), against) for g in range(5)]
    assert found.replicates == pytest.approx(left, rel=1e-9)
    assert found.facts == {"n": 30, "dim": 40, "rank_deficient": True}


def test_little_memory_costs_passes_and_no_digits(monkeypatch):
    rows, groups = features(103), groups_of(torch.arange(103))
    target, read = Target(reference().moments["pool3"]), []

    class Watched(Held):
        def blocks(self, size=16):
            read.append(size)
            return super().blocks(size)

    want = without_each(Watched(rows), groups, target)
    assert len(read) == 1
    for at_once, passes in ((10, 2), (7, 3), (1, 20)):
        read.clear()
        monkeypatch.setattr(distances, "MEMORY", at_once * 8 * 6**2)
        value, replicates = without_each(Watched(rows), groups, target)
        assert len(read) == passes
        assert value == pytest.approx(want[0], rel=1e-12)
        assert replicates == pytest.approx(want[1], rel=1e-12)


def test_half_of_twenty_groups_of_inception_features_fit_at_once():
    assert distances.MEMORY // (8 * 2048**2) >= 10


def test_no_replicates_without_groups_or_when_too_few_images_are_left():
    target = Target(reference().moments["pool3"])
    value, replicates = without_each(Held(features(50)), groups_of(torch.arange(50), 1), target)
    assert replicates == () and value == target.distance(Moments.of(features(50)))
    assert without_each(Held(features(2)), torch.tensor([0, 1]), target)[1] == ()


def test_bad_input_is_told():
    groups = groups_of(torch.arange(50))
    diverged = features(50)
    diverged[4, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 50 rows of features are not finite"):
        FrechetMeasure().measure(Sampled({"pool3": Held(diverged)}, groups), reference())
    with pytest.raises(ValueError, match="two images; the samples had 1"):
        FrechetMeasure().measure(
            Sampled({"pool3": Held(features(1))}, torch.zeros(1, dtype=torch.long)), reference()
        )
    with pytest.raises(ValueError, match=r"layer 'pool3'.*has those of \['cls'\]"):
        FrechetMeasure().measure(
            Sampled({"pool3": Held(features(50))}, groups), reference(layer="cls")
        )
    with pytest.raises(ValueError, match="has those of none"):
        FrechetMeasure().measure(Sampled({"pool3": Held(features(50))}, groups), None)
    with pytest.raises(ValueError, match="groups of 50 images and features of 49"):
        FrechetMeasure().measure(Sampled({"pool3": Held(features(49))}, groups), reference())
