"""FLOPs against hand computations, torch's own counter, published numbers and real runs."""

import latent
import pytest
import torch
from tiny import classifier as classifier_spec
from tiny import denoiser as denoiser_spec
from tiny import spec
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robustguide.attacks import PGD
from robustguide.checkpoints import build, load_denoiser
from robustguide.guidance import (
    Averaged,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    Reference,
    Scaled,
    ThroughDenoiser,
    Within,
    terms_of,
)
from robustguide.interfaces import Classifier
from robustguide.machine.flops import is_product
from robustguide.modules import (
    Denoising,
    FreeClassification,
    Generation,
    RobustClassification,
)
from robustguide.nets import EncoderUNet
from robustguide.noise import ChainGrid, LogNormal, RhoGrid, linear_levels
from robustguide.plans.cost import (
    Configuration,
    Cost,
    Part,
    cost_of,
    of_sampling,
    of_training,
    read,
    weightless,
)
from robustguide.plans.flops import Counter, work_of
from robustguide.samplers import Ancestral, Heun

DIGITS = spec("data.Images", batch_size=64)


class Mixed(nn.Module):
    """A convolution, two heads of attention over its 64 pixels, and a linear readout."""

    def __init__(self):
        super().__init__()
        self.enter, self.qkv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv1d(8, 24, 1)
        self.leave = nn.Linear(8 * 64, 10)
        self.requires_grad_(False)

    def forward(self, x):
        q, k, v = self.qkv(self.enter(x).flatten(2)).view(-1, 3, 2, 4, 64).mT.unbind(1)
        return self.leave(F.scaled_dot_product_attention(q, k, v).mT.flatten(1))


CONVOLUTION = 2 * 64 * 8 * 3 * 9  # pixels, filters, channels, taps
PROJECTION = 2 * 64 * 24 * 8
ATFEWTION = 2 * (2 * 2 * 64 * 64 * 4)  # queries with keys, and weights with values
READOUT = 2 * 10 * 8 * 64


@pytest.mark.parametrize("rows", [1, 3])
def test_a_hand_computation(rows):
    net = Mixed().to("meta")
    x = torch.zeros(rows, 3, 8, 8, device="meta")
    work, answer = work_of(net, net, x, True)
    linear = CONVOLUTION + PROJECTION + READOUT
    assert work.forward == rows * (linear + ATFEWTION)
    # a product has one gradient where the other factor is a weight, and two in attention
    assert work.backward == rows * (linear + 2 * ATFEWTION)
    assert answer.shape == (rows, 10)
    forward, _ = work_of(net, net, x, False)
    assert (forward.forward, forward.backward) == (work.forward, 0)


def test_what_a_graph_keeps():
    """An activation keeps its input, a frozen layer nothing; views are of one storage."""
    net = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 2)).requires_grad_(False)
    work, _ = work_of(net, net.to("meta"), torch.zeros(3, 5, device="meta"), True)
    assert work.kept_bytes == 4 * 3 * 7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_same_as_torch_counts():
    arguments = dict(image_size=16, in_channels=3, model_channels=32, out_channels=10)
    arguments |= dict(num_res_blocks=1, attention_resolutions=[1, 2], channel_mult=[1, 2])
    with torch.device("meta"):
        net = EncoderUNet(**arguments, num_heads=2, pool="attention")
        x, t = torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)
    with FlopCounterMode(display=False) as theirs:
        net(x, t).sum().backward()
    with Counter() as ours:
        net(x, t).sum().backward()
    assert ours.flops == theirs.get_total_flops() > 0


@pytest.mark.parametrize(
    ("name", "multiplies"),
    [
        ("_scaled_dot_product_flash_attention_for_cpu", True),
        ("_native_multi_head_attention", True),
        ("_fft_r2c", True),
        ("mkldnn_rnn_layer", True),
        ("upsample_bilinear2d", False),
        ("linalg_vector_norm", False),
        ("lgamma", False),
        ("convolution", True),
    ],
)
def test_which_operations_multiply(name, multiplies):
    assert is_product(name) == multiplies


def test_what_cannot_be_counted_is_refused():
    """As torch's counter, which counts nothing."""
    with pytest.raises(ValueError, match="The FLOPs of mv are not known"), Counter():
        torch.zeros(3, 3, device="meta") @ torch.zeros(3, device="meta")


# Peebles and Xie (2023), table 1 and section 4, who count a multiplication and an addition as one.
def test_published_flops_of_dit():
    denoiser = load_denoiser(card="dit-xl2-imagenet256", device="meta")
    y = torch.zeros(1, dtype=torch.long, device="meta")
    x, sigma = torch.zeros(1, 4, 32, 32, device="meta"), torch.ones(1, device="meta")
    work, _ = work_of(denoiser, lambda x: denoiser.predict(x, sigma, y), x, False)
    assert work.forward / 2e9 == pytest.approx(118.64, rel=0.01)


def denoiser():
    return build(denoiser_spec())


def classifier():
    return build(classifier_spec())


FEW = Ancestral(ChainGrid(linear_levels(), "3"), clip=1.0)
CORRECTED = Heun(RhoGrid(2))
TERMS = {
    "unguided": lambda: {},
    "classifier": lambda: {"a": Scaled(ClassifierGuidance(classifier()), scale=2.0)},
    "free": lambda: {"a": ClassifierFree()},
    "reference": lambda: {"a": Reference(denoiser())},
    "through": lambda: {"a": ClassifierGuidance(classifier(), view=ThroughDenoiser())},
    "averaged": lambda: {"a": Averaged(ClassifierGuidance(classifier()), count=2, std=0.1)},
    "both": lambda: {
        "a": ClassifierGuidance(classifier()),
        "b": Within(ClassifierFree(), sigma_min=0.5, sigma_max=5.0),
    },
}


def rows(parts, work, network=""):
    return sum(part.rows for part in parts if part.work == work and network in part.network)


@pytest.mark.parametrize(
    ("name", "sampler"), [*((name, FEW) for name in TERMS), ("both", CORRECTED)]
)
def test_evaluations_are_those_of_a_real_run(name, sampler):
    """Of an image that is really sampled; and FLOPs are those without any standing in."""
    model = Generation(denoiser(), sampler, TERMS[name](), watched_steps=1)
    model.predict_step((torch.tensor([0]), torch.tensor([3])), 0)
    counted = model.evaluated
    parts = of_sampling(model)
    assert rows(parts, "forward", "denoiser") == counted.denoiser_evaluations
    guiding = "guidance"
    assert rows(parts, "forward", guiding) == (
        counted.classifier_forward + counted.reference_evaluations
    )
    assert rows(parts, "gradient") == counted.classifier_backward + counted.denoiser_backward
    x = torch.zeros(1, 1, 8, 8, device="meta")
    y = torch.zeros(1, dtype=torch.long, device="meta")
    with Counter() as counter:
        start = sampler.start(x, model.denoiser)
        sampler(model.denoiser, terms_of(model.guidance), start, y, torch.zeros_like)
    assert sum(part.flops for part in parts) == counter.flops > 0


def test_a_codec_and_networks_of_a_term():
    """Both are there, though nobody knows the network of the term."""

    class Projected(Guidance):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 6)

        def forward(self, step):
            return 0 * self.net(step.x)

    small = denoiser_spec(shape=[2, 6, 6])
    small["init_args"]["shape"] = [2, 6, 6]
    codec = latent.codec()
    model = Generation(build(small), FEW, {"own": Projected()}, watched_steps=1, codec=codec)
    *_, decoding, own = of_sampling(model)
    assert (decoding.network, decoding.work, decoding.rows) == ("codec", "decode", 1)
    assert own.network == "guidance" and own.flops == 3 * 2 * 2 * 6 * 6 * 6
    x_0 = torch.zeros(1, 2, 6, 6, device="meta")
    with Counter() as counter:
        codec.decode(x_0)
    assert decoding.flops == counter.flops > 0


class Flat(Classifier):
    """One matrix."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 10)

    def forward(self, x, sigma):
        return self.net(x.flatten(1))


MATRIX = 2 * 64 * 10


@pytest.mark.parametrize(
    ("early_stop", "others"),
    [(False, {}), (True, {}), (True, dict(probe=True)), (False, dict(batch_sizes=(8, 64)))],
)
def test_a_step_of_training_by_hand(early_stop, others):
    """K times there and back to the image, then there and back to the weights."""
    attack = PGD(radius=0.3, steps=3, early_stop=early_stop, **others)
    model = RobustClassification(Flat(), LogNormal(), attack)
    trainer = {"max_steps": 100, "devices": 4, "num_nodes": 2, "accumulate_grad_batches": 3}
    cost = of_training(model, Configuration({}, DIGITS, trainer))
    assert [(part.work, part.flops) for part in cost.parts] == [
        ("attack, PGD-3", 3 * 2 * MATRIX),
        ("forward", MATRIX),
        ("gradient", MATRIX),
    ]
    assert model.attack.steps == 3 and (cost.processes, cost.steps) == (8, 100)
    assert cost.images == 100 * 8 * 3 * 64
    # AdamW: weight, gradient, two moments; and a count of steps for each of the two tensors
    assert cost.state_bytes == 4 * (4 * 650 + 2)
    assert any("at most" in note for note in cost.notes) == early_stop


def test_a_pass_of_free_training_is_a_step_of_plain_training():
    trainer = {"max_steps": 100}
    models = (
        RobustClassification(Flat(), LogNormal()),
        FreeClassification(Flat(), noise=LogNormal()),
    )
    plain, free = (of_training(each, Configuration({}, DIGITS, trainer)) for each in models)
    assert free.parts == plain.parts and free.flops == 2 * MATRIX
    assert (free.steps, free.images, free.state_bytes) == (100, plain.images, plain.state_bytes)


def test_training_of_a_denoiser():
    """Three times the forward pass, but for what has no gradient: the images themselves."""
    model = Denoising(build(denoiser_spec()), LogNormal())
    cost = of_training(model, Configuration({}, DIGITS, {"max_steps": -1}))
    forward, backward = (part.flops for part in cost.parts)
    x = torch.zeros(1, 1, 8, 8, device="meta")
    y = torch.zeros(1, dtype=torch.long, device="meta")
    with Counter() as counter:
        model.denoiser(x, torch.ones(1, device="meta"), y)
    entering = 2 * 64 * 16  # pixels to features, and the embedding of t to features
    assert forward == counter.flops
    assert backward == 2 * forward - entering - 2 * 16 * 16
    assert cost.steps == 1 and "no trainer.max_steps" in cost.notes[0]


def test_hours():
    cost = Cost("sampling", (Part("denoiser", "", "forward", 0, 1, 39e12),), images=2800)
    assert cost.gpu_hours("a100", "bf16", 0.5) == pytest.approx(39e12 * 2800 / 156e12 / 3600)
    assert cost.gpu_hours("a100", "fp32", 1.0) == pytest.approx(2 * 2800 / 3600)
    assert cost.gpu_hours("h100", "bf16", 1.0) / cost.gpu_hours("h100", "tf32", 1.0) == (
        pytest.approx(494 / 989)
    )


def test_published_weights_are_not_asked_for():
    shelf = {
        "class_path": "robustguide.checkpoints.torchvision_classifier",
        "init_args": {"name": "resnet18", "pretrained": True},
    }
    net = {
        "class_path": "torchvision.models.resnet18",
        "init_args": {"weights": "IMAGENET1K_V1"},
    }
    folder = spec("checkpoints.load_autoencoder", path="models/sd-vae-ft-ema")
    file = spec("checkpoints.load_denoiser", path="models/64x64_diffusion.pt")
    found = weightless({"terms": [shelf, net], "codec": folder, "denoiser": file})
    assert found["terms"][0]["init_args"] == {"name": "resnet18", "pretrained": False}
    assert found["terms"][1]["init_args"] == {}
    assert found["codec"]["class_path"] == "robustguide.codecs.KLAutoencoder"
    assert found["denoiser"]["init_args"] == {"path": None, "card": "adm-imagenet64"}


def test_what_depends_on_images_is_refused(tmp_path):
    class Undecided(Guidance):
        def forward(self, step):
            return step.x * len(step.x.flatten().nonzero())

    model = Generation(denoiser(), FEW, {"own": Undecided()}, watched_steps=1)
    with pytest.raises(ValueError, match="depends on the images here, which are not made"):
        of_sampling(model)


def test_configurations_that_do_neither(tmp_path):
    file = tmp_path / "neither.yaml"
    file.write_text("trainer: {max_steps: 1}\n")
    with pytest.raises(ValueError, match=r"neither\.yaml has no `model`"):
        read([str(file)])
    model = spec("modules.Autoencoding", codec=latent.codec_spec())
    with pytest.raises(ValueError, match="Autoencoding neither samples nor trains"):
        cost_of(Configuration(model, DIGITS, {}))
