import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet18

from robustguide.interfaces import Classifier
from robustguide.metrics import ClassifierFeatures


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

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x, sigma):
        return self.net(x.flatten(1) + sigma[:, None] + 1)


@pytest.fixture
def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Digits()


def test_features_are_what_the_head_reads(network, images):
    features = ClassifierFeatures(network, "digits_features")(images)
    assert features.shape == (5, 144) and not features.requires_grad
    with torch.no_grad():
        assert torch.equal(features, network.body(images))
        assert torch.equal(network.head(features), network(images))


def test_torchvision_networks_need_no_layer_name():
    torch.manual_seed(0)
    network = resnet18(num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    features = ClassifierFeatures(network, "resnet")(images)
    assert features.shape == (2, 512)
    with torch.no_grad():
        assert torch.equal(network.fc(features), network(images))


def test_a_classifier_is_read_at_no_noise():
    images = torch.rand(2, 1, 2, 2)
    features = ClassifierFeatures(AtSigma(), "features")(images)
    assert_close(features, images.flatten(1) + 1, rtol=0, atol=0)


def test_a_named_layer_is_flattened(images):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 6), nn.Flatten())
    features = ClassifierFeatures(network, "features", layer="2")(images)
    with torch.no_grad():
        assert torch.equal(features, network[:2](images).flatten(1))
    with pytest.raises(ValueError, match=r"No nn.Linear of Sequential computes its logits; name"):
        ClassifierFeatures(network, "features")(images)


def test_an_unknown_layer_is_refused_with_the_names_there_are(network):
    with pytest.raises(ValueError, match=r"no layer 'fc'.*body, head, auxiliary"):
        ClassifierFeatures(network, "features", layer="fc")


def test_train_mode_is_refused(network, images):
    extractor = ClassifierFeatures(network, "features")
    want = extractor(images)
    extractor.train()
    assert not network.training
    assert torch.equal(extractor(images), want)


def test_features_do_not_depend_on_the_caller_s_precision(network, images):
    extractor = ClassifierFeatures(network, "features")
    want = extractor(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images).dtype == torch.bfloat16
        assert torch.equal(extractor(images), want)


def test_copies_agree_and_no_hook_stays(network, images):
    extractor = ClassifierFeatures(network, "features")
    want = extractor(images)
    assert not any(module._forward_hooks for module in network.modules())
    for twin in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        assert torch.equal(twin(images), want)


def test_identity_names_the_weights(network, images):
    extractor = ClassifierFeatures(network, "digits_features")
    before = extractor.identity
    extractor(images)
    assert extractor.identity == before == copy.deepcopy(extractor).identity
    assert before.startswith("digits_features@")
    assert ClassifierFeatures(network, "digits_features", layer="body.1").identity != before
    with torch.no_grad():
        network.body[1].running_mean[0] += 1e-3
    assert extractor.identity != before
