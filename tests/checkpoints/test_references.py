import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from robustguide.checkpoints import sha256_of
from robustguide.checkpoints.references import open_reference, with_activations
from robustguide.metrics.extractor import Extractor, Identity
from robustguide.metrics.moments import Moments
from robustguide.metrics.protocols import protocol
from robustguide.metrics.reference import Provenance, Reference
from robustguide.metrics.tables import Held

INCEPTION = Identity("inception-2015-12-05", None, "tf1-bilinear-299")


def moments(dim, seed=0):
    """A mean and a covariance: a diagonal and a matrix of rank one."""
    rng = np.random.default_rng(seed)
    mu, row = rng.normal(size=dim), rng.normal(size=dim)
    return mu, np.diag(rng.uniform(1, 2, dim)) + np.outer(row, row)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files in the layouts of ADM, EDM and EDM2."""
    folder = tmp_path_factory.mktemp("published")
    mu, sigma = moments(2048)
    mu_s, sigma_s = moments(2023, 1)
    mu_d, sigma_d = moments(1024, 2)
    images = np.random.default_rng(3).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    np.savez(folder / "adm.npz", mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s, arr_0=images)
    np.savez(folder / "edm.npz", mu=mu, sigma=sigma)
    stats = {"fid": {"mu": mu, "sigma": sigma}, "fd_dinov2": {"mu": mu_d, "sigma": sigma_d}}
    for version in (2, 4, 5):
        (folder / f"edm2-{version}.pkl").write_bytes(pickle.dumps(stats, version))
    return folder


@pytest.mark.parametrize(
    ("file", "name", "parts"),
    [
        ("adm.npz", "adm", {"pool3": (2048, 0), "spatial": (2023, 1)}),
        ("edm.npz", "edm", {"pool3": (2048, 0)}),
        ("edm2-2.pkl", "edm", {"pool3": (2048, 0)}),
        ("edm2-4.pkl", "edm", {"pool3": (2048, 0)}),
        ("edm2-4.pkl", "fd-dinov2-edm2", {"cls": (1024, 2)}),
        ("edm2-5.pkl", "fd-dinov2-edm2", {"cls": (1024, 2)}),
    ],
)
def test_published_files_open_as_they_are(published, file, name, parts):
    reference, of = open_reference(published / file, protocol(name)), protocol(name)
    assert reference.protocol == name
    assert reference.identity == Identity(of.network, None, of.resize)
    told = reference.provenance
    assert (told.data, told.count, told.file) == (file, None, str(published / file))
    assert told.digest == sha256_of(published / file)
    assert set(reference.moments) == set(parts) and not reference.activations
    for layer, (dim, seed) in parts.items():
        mean, covariance = moments(dim, seed)
        found = reference.moments[layer]
        assert found.count is None
        assert np.array_equal(found.mean.numpy(), mean)
        assert np.array_equal(found.covariance.numpy(), covariance)
    # what a protocol measures is there under the names that it uses
    layers = {each.layer for each in of.measures if each.needs == "moments"}
    assert layers == set(reference.moments)
    of.require(reference, Identity(of.network, "some digest", of.resize))


def own(folder):
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    reference = Reference(
        "digits_features",
        Identity("digits_features", "a", "none"),
        Provenance("Digits", "train", "as they are", 9, "b"),
        {"features": Moments.of(features)},
        {"features": Held(features)},
    )
    reference.save(folder / "own.safetensors")
    return reference


def test_our_own_file(tmp_path):
    reference = own(tmp_path)
    found = open_reference(tmp_path / "own.safetensors", protocol("digits_features"))
    assert found.provenance == reference.provenance and found.identity == reference.identity
    assert torch.equal(
        found.moments["features"].covariance, reference.moments["features"].covariance
    )
    assert found.moments["features"].count == 9 and found.digest() == reference.digest()
    assert torch.equal(
        found.activations["features"].block(0, 9), reference.activations["features"].block(0, 9)
    )
    first = (tmp_path / "own.safetensors").read_bytes()
    for _ in range(5):  # its header has no order of chance
        reference.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("file", "asked", "made"),
    [
        ("adm.npz", "edm", "adm"),
        ("edm.npz", "adm", "edm"),
        ("edm.npz", "clean", "edm"),
        ("edm2-4.pkl", "fd-dinov2-dgm", "edm, fd-dinov2-edm2"),
        ("own.safetensors", "adm", "digits_features"),
    ],
)
def test_another_protocol_is_refused_by_both_names(published, tmp_path, file, asked, made):
    own(tmp_path)
    path = (tmp_path if file.startswith("own") else published) / file
    said = f"measured by protocol '{asked}', but .*{file} was made by '{made}'; score by"
    with pytest.raises(ValueError, match=said):
        open_reference(path, protocol(asked))


class Corners(Extractor):
    """Features that are the bytes at the corner, over and over."""

    def __init__(self, identity):
        super().__init__(identity)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def features(self, pixels, y):
        corner = pixels[:, :, 0, 0].float() * self.scale
        return {"pool3": corner.repeat(1, 683)[:, :2048], "logits": corner}


def test_activations_come_from_adms_images(published, tmp_path):
    adm, extractor = protocol("adm"), Corners(replace(INCEPTION, digest="d"))
    reference = open_reference(published / "adm.npz", adm)
    images = np.load(published / "adm.npz")["arr_0"]
    for batch_size in (1, 3, 100):
        found = with_activations(reference, extractor, adm, batch_size)
        assert set(found.activations) == {"pool3"} and found.moments == reference.moments
        rows = found.activations["pool3"].block(0, 7)
        assert rows.shape == (7, 2048) and np.array_equal(rows[:, :3].numpy(), images[:, 0, 0])
        assert with_activations(found, extractor, adm, batch_size) is found
    assert found.digest() == reference.digest()
    with pytest.raises(ValueError, match=r"come from .* resize none, .*tf1-bilinear-299"):
        with_activations(reference, Corners(replace(INCEPTION, resize="none")), adm, 4)
    np.savez(tmp_path / "a.npz", arr_0=images / 255.0)
    broken = replace(reference.provenance, file=str(tmp_path / "a.npz"))
    with pytest.raises(ValueError, match=r"arr_0 in .* is float64 .*; expected images as bytes"):
        with_activations(replace(reference, provenance=broken), extractor, adm, 4)


def test_a_reference_without_images_stays_as_it_is(published):
    reference = open_reference(published / "edm.npz", protocol("edm"))
    extractor = Corners(INCEPTION)
    for name in ("edm", "adm"):  # which needs none, and which would need some
        assert with_activations(reference, extractor, protocol(name), 4) is reference


MU, SIGMA = moments(2048)
LOPSIDED = SIGMA + np.triu(np.full_like(SIGMA, 0.01))
NAN = np.where(np.arange(2048) == 5, np.nan, MU)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": MU[:9], "sigma": SIGMA[:9, :9]}, r"shapes \[9\] and \[9, 9\]; .* \[2048, 2048\]"),
        ({"mu": MU, "sigma": SIGMA[0]}, r"shapes \[2048\] and \[2048\]; features of layer 'pool3"),
        ({"mu": NAN, "sigma": SIGMA}, "hold values that are not finite; get the file again"),
        ({"mu": MU, "sigma": LOPSIDED}, "sigma in .* no covariance: .* transpose by up to 0.01"),
        ({"mu": MU, "sigma": SIGMA, "mu_s": MU}, "has mu_s without the other of mu_s, sigma_s"),
        ({"mu": MU}, "holds mu, no mu and sigma"),
        ({"arr_0": MU}, "no mu and sigma; compute them from its images with `robustguide stats"),
        ({"mu": np.array([None]), "sigma": SIGMA}, "mu in .* of type object, which can hold code"),
    ],
)
def test_archives_that_hold_no_statistics(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    name = "adm" if {"mu_s", "arr_0"} & set(arrays) else "edm"
    with pytest.raises(ValueError) as raised:
        open_reference(tmp_path / "a.npz", protocol(name))
    assert re.search(said, str(raised.value)), raised.value


class Foreign:
    """A class of somebody's."""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"fid": {"mu": MU, "sigma": Foreign()}}, "was not opened: it names .*Foreign"),
        ({"fid": {"mu": MU}}, "fid in .* has no arrays mu and sigma; expected a file of"),
        ({"fid": {"mu": 1, "sigma": 2}}, "fid in .* has no arrays mu and sigma"),
        ({"fid": {"mu": MU[:3], "sigma": SIGMA}}, r"of shapes \[3\] and \[2048, 2048\]"),
        ({"fid": {"mu": NAN, "sigma": SIGMA}}, "hold values that are not finite"),
        ({"kid": {}}, "has neither of fid, fd_dinov2; expected"),
        ([1], "has neither of fid, fd_dinov2"),
    ],
)
def test_pickles_that_hold_no_statistics(tmp_path, content, said):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match=said):
        open_reference(tmp_path / "a.pkl", protocol("edm"))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("adm.npz", "it is cut short or damaged; get or make it again"),
        ("edm2-4.pkl", "was not opened: its pickle breaks off"),
        ("own.safetensors", "is no safetensors file"),
    ],
)
def test_files_that_were_cut_short(published, tmp_path, file, said):
    own(tmp_path)
    path = (tmp_path if file.startswith("own") else published) / file
    (tmp_path / file).write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=said):
        open_reference(tmp_path / file, protocol("edm"))


def test_what_is_no_reference(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist .* `robustguide stats`"):
        open_reference(tmp_path / "a.npz", protocol("edm"))
    (tmp_path / "a.npz").write_text("<html>")
    with pytest.raises(ValueError, match="holds no statistics, or is damaged; expected"):
        open_reference(tmp_path / "a.npz", protocol("edm"))
