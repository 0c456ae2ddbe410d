import numpy as np
import pytest
import sampled
import torch

from robustguide.data.statistics import places, statistics
from robustguide.metrics.extractor import Extractor, Identity
from robustguide.metrics.protocol import Protocol
from robustguide.metrics.protocols import protocol
from robustguide.metrics.protocols.classifier_features import MEASURES
from robustguide.metrics.reference import Provenance

IDENTITY = Identity("corner", "a", "none")


class Corner(Extractor):
    """Bytes of the upper left corner, far from 0."""

    def features(self, pixels, y):
        return {"features": pixels[:, :, :2, :2].flatten(1).float() + 1e4}


def measured(samples, activations=5, batch_size=4, measures=MEASURES):
    of = Protocol("corner", "corner", "none", measures, "a test")
    told = []
    found = statistics(
        samples, Corner(IDENTITY), of, Provenance("a"), activations, batch_size, told.append
    )
    assert sum(told) == samples.count
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_one_pass_gives_moments_and_some_features(batch_size):
    samples = sampled.Held(31)
    reference = measured(samples, 5, batch_size)
    features = samples.pixels[:, :, :2, :2].flatten(1).double().numpy() + 1e4
    moments = reference.moments["features"]
    assert moments.count == 31
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T), rtol=1e-11, atol=1e-8)
    kept = reference.activations["features"]
    assert torch.equal(
        kept.block(0, 5).double(), torch.from_numpy(features[sorted(places(31, 5))])
    )
    assert (reference.protocol, reference.identity) == ("corner", IDENTITY)
    assert reference.provenance == Provenance("a", count=31, digest=samples.digest())


def test_features_are_of_fixed_images():
    assert places(12, 4) == {3, 7, 9, 11}  # the smallest of BLAKE2b of "0:0", "0:1", ...
    assert places(12, 3) < places(12, 4) and places(3, 9) == {0, 1, 2}
    counts = np.bincount([place // 100 for place in places(1000, 300)])  # of ten sorted classes
    assert counts.min() > 15 and counts.sum() == 300


def test_no_features_where_none_are_wanted():
    assert not measured(sampled.Held(9), 0).activations
    of_moments = tuple(each for each in MEASURES if each.needs == "moments")
    assert not measured(sampled.Held(9), 5, measures=of_moments).activations


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="'class-accuracy' compares with no real images"):
        told = Provenance("a")
        statistics(sampled.Held(), Corner(IDENTITY), protocol("class-accuracy"), told, 5, 4)
    with pytest.raises(ValueError, match="activations is -1; expected 0 or more"):
        measured(sampled.Held(), -1)
    with pytest.raises(ValueError, match="holds one image; a covariance needs two"):
        measured(sampled.Held(1))
