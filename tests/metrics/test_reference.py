"""References as files, and how two of them are told apart."""

from dataclasses import replace

import pytest
import torch

from robustguide.metrics.extractor import Identity
from robustguide.metrics.moments import Moments
from robustguide.metrics.protocols import protocol
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.tables import Held

IDENTITY = Identity("inception-2015-12-05", "6726", "tf1-bilinear-299")
FEATURES = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
REFERENCE = Reference(
    "adm",
    IDENTITY,
    Provenance("photographs", "train", "128 x 128", 9, "ab"),
    {"pool3": Moments.of(FEATURES)},
    {"pool3": Held(FEATURES[:5])},
)


def test_a_reference_is_read_as_it_was_written(tmp_path):
    REFERENCE.save(tmp_path / "a")
    read = Reference.load(tmp_path / "a")
    assert (read.protocol, read.identity, read.provenance) == (
        "adm",
        IDENTITY,
        REFERENCE.provenance,
    )
    assert torch.equal(read.moments["pool3"].covariance, REFERENCE.moments["pool3"].covariance)
    assert read.moments["pool3"].count == 9
    assert torch.equal(read.activations["pool3"].block(0, 9), FEATURES[:5])
    assert read.digest() == REFERENCE.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"moments": {"pool3": Moments.of(FEATURES[:8])}},
        {"activations": {"pool3": Held(FEATURES[:4])}},  # precision and recall would be others
        {"activations": {"pool3": Held(FEATURES[1:6])}},
        {"identity": replace(IDENTITY, resize="pil-bicubic-float-299")},
    ],
)
def test_other_statistics_have_another_digest(change):
    assert replace(REFERENCE, **change).digest() != REFERENCE.digest()


@pytest.mark.parametrize(
    ("name", "identity", "words"),
    [
        ("edm", IDENTITY, "by protocol 'edm', the reference 'photographs' was made by 'adm'"),
        ("adm", replace(IDENTITY, digest="0"), "@0, resize.*those of the reference.*@6726"),
        ("adm", replace(IDENTITY, resize="none"), "resize none.*resize tf1-bilinear-299"),
    ],
)
def test_what_differs_is_refused_by_both_names(name, identity, words):
    with pytest.raises(ValueError, match=words):
        protocol(name).require(REFERENCE, identity)


def test_a_foreign_reference_is_believed():
    foreign = replace(REFERENCE, identity=replace(IDENTITY, digest=None))
    protocol("adm").require(foreign, IDENTITY)


def test_features_of_a_foreign_files_images_may_differ_in_last_bits():
    told = replace(REFERENCE.provenance, file="a.npz")
    foreign = replace(REFERENCE, provenance=told)
    again = replace(foreign, activations={"pool3": Held(FEATURES[:5] + 1e-6)})
    assert foreign.digest() == again.digest()
    other = replace(foreign, provenance=replace(told, digest="cd"))
    assert foreign.digest() != other.digest()
