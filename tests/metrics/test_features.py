import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet18

from robustguide.interfaces import Classifier, from_pixels
from robustguide.metrics.extractor import Identity, whole_float32
from robustguide.metrics.features import ClassifierFeatures, ColourFeatures, digest_of


class Digits(nn.Module):
    """A decoy after the head, and dropout and batch norm that train mode would show."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten()
        )
        self.head = nn.Linear(4 * 36, 10)
        self.auxiliary = nn.Linear(4 * 36, 10)

    def forward(self, x):
        hidden = self.body(x)
        self.auxiliary(hidden + 1)
        return self.head(hidden)


class AtSigma(Classifier):
    num_classes = 3
    shape = 1, 2, 2

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x, sigma):
        return self.net(x.flatten(1) + sigma[:, None] + 1)


class Mean(ColourFeatures):
    """The mean of each channel of what it is shown."""

    def read(self, images, y):
        return {"mean": self.net(images).mean((2, 3))}


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (5, 1, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Digits()


def test_features_are_what_the_head_reads(network, pixels):
    extractor = ClassifierFeatures(network, "digits_features", layers=("logits", "features"))
    found = extractor(pixels)
    assert list(found) == ["logits", "features"]
    assert found["features"].shape == (5, 144) and not found["features"].requires_grad
    with torch.no_grad():
        assert torch.equal(found["features"], network.body(from_pixels(pixels)))
        assert torch.equal(found["logits"], network.head(found["features"]))
    assert list(ClassifierFeatures(network, "digits_features")(pixels)) == ["features"]


def test_torchvision_networks_need_no_layer_name():
    torch.manual_seed(0)
    network = resnet18(num_classes=7).eval()
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = ClassifierFeatures(network, "resnet")(pixels)["features"]
    assert features.shape == (2, 512)
    with torch.no_grad():
        assert torch.equal(network.fc(features), network(from_pixels(pixels)))


def test_a_classifier_is_read_at_no_noise():
    pixels = torch.randint(256, (2, 1, 2, 2), dtype=torch.uint8)
    features = ClassifierFeatures(AtSigma(), "features")(pixels)["features"]
    assert_close(features, from_pixels(pixels).flatten(1) + 1, rtol=0, atol=0)


def test_images_of_another_shape_are_refused():
    extractor = ClassifierFeatures(AtSigma(), "tiny")
    with pytest.raises(ValueError, match=r"'tiny' reads .* \[1, 2, 2\], got \[1, 8, 8\]"):
        extractor(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_a_named_layer_is_flattened(pixels):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 6), nn.Flatten())
    features = ClassifierFeatures(network, "features", layer="2")(pixels)["features"]
    with torch.no_grad():
        assert torch.equal(features, network[:2](from_pixels(pixels)).flatten(1))
    with pytest.raises(ValueError, match=r"No nn.Linear of Sequential computes its logits; name"):
        ClassifierFeatures(network, "features")(pixels)
    logits = ClassifierFeatures(network, "judge", layers=("logits",))(pixels)["logits"]
    with torch.no_grad():  # which need no such layer
        assert torch.equal(logits, network(from_pixels(pixels)))


def test_an_unknown_layer_is_refused_with_the_names_there_are(network):
    with pytest.raises(ValueError, match=r"no layer 'fc'.*body, head, auxiliary"):
        ClassifierFeatures(network, "features", layer="fc")


def test_train_mode_is_refused(network, pixels):
    extractor = ClassifierFeatures(network, "features")
    want = extractor(pixels)["features"]
    extractor.train()
    assert not network.training
    assert torch.equal(extractor(pixels)["features"], want)


def test_features_do_not_depend_on_the_caller_s_precision(network, pixels):
    extractor = ClassifierFeatures(network, "features")
    want = extractor(pixels)["features"]
    with torch.autocast("cpu", torch.bfloat16):
        assert network(from_pixels(pixels)).dtype == torch.bfloat16
        assert torch.equal(extractor(pixels)["features"], want)


def test_copies_agree_and_no_hook_stays(network, pixels):
    extractor = ClassifierFeatures(network, "features")
    want = extractor(pixels)["features"]
    assert not any(module._forward_hooks for module in network.modules())
    for twin in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        assert torch.equal(twin(pixels)["features"], want)


def test_identity_names_the_weights(network, pixels):
    extractor = ClassifierFeatures(network, "digits_features")
    before = extractor.identity
    extractor(pixels)
    assert before == ClassifierFeatures(copy.deepcopy(network), "digits_features").identity
    assert (before.network, before.resize) == ("digits_features", "none")
    assert not before.agrees(ClassifierFeatures(network, "digits_features", "body.1").identity)
    with torch.no_grad():
        network.body[1].running_mean[0] += 1e-3
    assert not before.agrees(ClassifierFeatures(network, "digits_features").identity)


def test_digests():
    """Of names, types, shapes and bytes; not of counters that nothing reads, nor of the order."""
    tensors = {"b": torch.arange(6.0), "a": torch.zeros(2)}
    want = digest_of(tensors, "fact")
    assert len(want) == 16
    counted = {"bn.num_batches_tracked": torch.tensor(3), **dict(reversed(tensors.items()))}
    assert digest_of(counted, "fact") == want
    others = [
        tensors | {"b": torch.arange(6.0).reshape(2, 3)},
        tensors | {"a": torch.zeros(2, dtype=torch.int32)},
        tensors | {"a": torch.tensor([0.0, -0.0])},
        {"b": tensors["b"], "c": tensors["a"]},
    ]
    found = [digest_of(other, "fact") for other in others]
    assert len({want, digest_of(tensors), *found}) == 6
    assert digest_of(tensors | {"a": torch.zeros(2, device="meta")}) is None


def test_colours_are_resized_and_standardised(pixels):
    """A flat image stays flat: (byte - mean) / std, and grey is shown in all channels."""
    identity = Identity("mean", None, "tf1-bilinear-16")
    extractor = Mean(nn.Identity(), identity, mean=[10, 20, 30], std=[2, 4, 5])
    flat = torch.tensor([10, 60, 80], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 8, 8)
    want = torch.tensor([[0.0, 10.0, 10.0]]).expand(2, 3)
    assert torch.equal(extractor(flat.contiguous())["mean"], want)
    grey = pixels.float().mean((1, 2, 3))
    shown = Mean(nn.Identity(), Identity("mean", None, "none"), mean=[0] * 3, std=[1] * 3)
    assert_close(shown(pixels)["mean"], grey[:, None].expand(5, 3))
    assert not shown.state_dict()
    with pytest.raises(ValueError, match=r"3 channels, .* got 4"):
        extractor(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_half_precision_weights_are_read_in_float32():
    net = nn.Conv2d(3, 3, 1).half()
    extractor = Mean(net, Identity("mean", None, "none"), mean=[0] * 3, std=[1] * 3)
    assert {p.dtype for p in extractor.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in extractor.parameters())


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_tf32_is_off_inside_and_as_before_outside(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        allowed = products.allow_tf32, convolutions.allow_tf32
        assert allowed[0] == (precision == "high")
        seen = []

        class Looking(nn.Module):
            def forward(self, images):
                new = hasattr(products, "fp32_precision")
                places = (products, convolutions.conv) if new else (products, convolutions)
                name = "fp32_precision" if new else "allow_tf32"
                seen.extend(getattr(place, name) in ("ieee", False) for place in places)
                return images

        extractor = Mean(Looking(), Identity("m", None, "none"), mean=[0] * 3, std=[1] * 3)
        extractor(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
        assert seen == [True, True]
        with pytest.raises(RuntimeError, match="inside"), whole_float32():
            raise RuntimeError("inside")
        assert (products.allow_tf32, convolutions.allow_tf32) == allowed
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
