"""EDM2's preconditioned networks and training loss, against recorded runs."""

import re

import pytest
import torch
from golden_files import listing, tolerance
from recorded_edm2 import edm2_denoiser, labels, ours
from torch import nn
from torch.testing import assert_close

from robustguide.denoisers import EDM2Denoiser
from robustguide.nets import EDM2UNet

NAMES = ["edm2_main", "edm2_guide", "edm2_uncond"]


def recorded(name):
    description, tensors, denoiser = edm2_denoiser(name)
    inputs = tensors["in.x"], tensors["in.sigma"], labels(tensors, len(tensors["in.x"]))
    return description, tensors, denoiser, inputs


@pytest.mark.parametrize("name", NAMES)
def test_denoised_image_log_variance_and_gradient(name):
    description, tensors, denoiser, (x, sigma, y) = recorded(name)
    x.requires_grad_()
    denoised = denoiser(x, sigma, y)
    (grad,) = torch.autograd.grad((denoised * tensors["in.grad_out"]).sum(), x)
    found = {"out.D": denoised, "out.grad_x": grad}
    found["out.logvar"] = denoiser.log_variance(sigma).reshape(-1, 1, 1, 1)
    for key, value in found.items():
        assert_close(value, tensors[key], **tolerance(description, key))


@pytest.mark.parametrize("name", ["edm2_main", "edm2_guide"])
def test_the_null_label_is_the_zero_vector(name):
    description, tensors, denoiser, (x, sigma, y) = recorded(name)
    key = "out.D_no_label"
    denoised = denoiser(x, sigma, denoiser.null(y))
    assert_close(denoised, tensors[key], **tolerance(description, key))


@pytest.mark.parametrize("name", NAMES)
def test_float64_state(name):
    description, tensors, denoiser, (x, sigma, y) = recorded(name)
    sigma = torch.full((len(x),), 0.7, dtype=torch.float64)
    denoised = denoiser(x.double(), sigma, y)
    assert denoised.dtype == torch.float64
    key = "out.D_scalar_sigma_f64"
    assert_close(denoised.float(), tensors[key], **tolerance(description, key))


@pytest.mark.parametrize("name", [*NAMES, "edm2_pickle"])
def test_parameters_in_float16_as_published(name):
    description, tensors, denoiser, (x, sigma, y) = recorded(name)
    denoised = denoiser.half()(x, sigma, y)
    assert denoised.dtype == torch.float32
    key = "out.D_f16_module"
    assert_close(denoised, tensors[key], **tolerance(description, key))


def test_weights_of_the_snapshot_in_float32():
    description, tensors, denoiser, inputs = recorded("edm2_pickle")
    assert_close(denoiser(*inputs), tensors["out.D"], **tolerance(description, "out.D"))


@pytest.mark.parametrize("net_dtype", ["float16", "bfloat16"])
def test_activations_of_half_precision(net_dtype):
    """The network's part is off by the type's rounding; state and answer stay in float32."""
    _, tensors, denoiser, inputs = recorded("edm2_main")
    denoiser.net_dtype = net_dtype
    denoised, want = denoiser(*inputs), tensors["out.D"]
    assert denoised.dtype == torch.float32
    error = (denoised - want).norm() / want.norm()
    assert 0 < error < 20 * torch.finfo(getattr(torch, net_dtype)).eps


@pytest.mark.parametrize("name", NAMES)
def test_a_training_call_writes_normalised_weights_back(name):
    description, tensors, denoiser, (x, sigma, y) = recorded(name)
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    denoiser(x, sigma, y)
    assert all(torch.equal(before[key], value) for key, value in denoiser.state_dict().items())
    denoiser.train()(x, sigma, y)  # asks the head for nothing, and leaves it as it is
    state, order = denoiser.state_dict(), description["weight_rms_order"]
    for when, tensor in (("before", before), ("after_training_forward", state)):
        rms = torch.stack([tensor[ours(key)].square().mean().sqrt() for key in order])
        assert_close(rms, tensors[f"out.weight_rms_{when}"], rtol=1e-5, atol=1e-6)
    prefix = "out.weight_after_training_forward."
    written = [key for key in tensors if key.startswith(prefix)]
    assert len(written) == 3
    for key in written:
        assert_close(state[ours(key.removeprefix(prefix))], tensors[key], rtol=1e-5, atol=1e-6)
    denoiser.log_variance(sigma)
    assert_close(
        denoiser.logvar_linear.weight.square().mean(), torch.tensor(1.0), rtol=1e-3, atol=0
    )


def published(flags):
    """The network of a preset."""
    form = re.search(r"channels=(\d+)(?: dropout=([\d.]+))?, .*?(\d)x(\d+)x\d+(, 1000)?", flags)
    width, dropout, channels, size, classes = form.groups()
    shape, num_classes = (int(channels), int(size), int(size)), 1000 if classes else 0
    net = EDM2UNet(int(size), int(channels), num_classes, int(width), dropout=float(dropout or 0))
    return EDM2Denoiser(net, num_classes, shape, has_null=False)


@pytest.mark.parametrize(
    "name",
    [
        "edm2_img512_xxs",
        "edm2_img512_xs",
        "edm2_img512_s",
        "edm2_img512_m",
        "edm2_img512_l",
        "edm2_img512_xl",
        "edm2_img512_xxl",
        "edm2_img512_xs_uncond",
        "edm2_img512_s_uncond",
        "edm2_img64_xs",
        "edm2_img64_s",
        "edm2_img64_m",
        "edm2_img64_l",
        "edm2_img64_xl",
    ],
)
def test_names_and_shapes_are_those_of_the_public_checkpoint(name):
    flags, shapes = listing(name)
    with torch.device("meta"):
        denoiser = published(flags)
    found = {key: tuple(value.shape) for key, value in denoiser.state_dict().items()}
    assert found == {ours(key): shape for key, shape in shapes.items()}


class Scaled(nn.Module):
    """A network of the user's own, stored in another type than it computes in."""

    def __init__(self, dtype):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.noise = None

    def forward(self, x, noise):
        self.noise = noise
        return self.factor * x


def test_a_network_of_the_users_own():
    """At sigma = sigma_data = 0.5, c_skip = 1/2, c_out = 1 / (2 sqrt 2) and c_in = sqrt 2."""
    denoiser = EDM2Denoiser(Scaled(torch.bfloat16), 0, (1, 2, 2))
    x, sigma = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    assert_close(denoiser(x, sigma / 2, torch.zeros(3).long()), 1.5 * x)
    assert_close(denoiser.net.noise, torch.full((3,), 0.5).log() / 4)


def test_the_loss_is_least_where_the_head_knows_the_log_of_the_weighted_error():
    """d/du (e exp(-u) + u) = 0 at u = log e, where the loss is 1 + log e."""
    denoiser = EDM2Denoiser(nn.Identity(), 0, (1, 1, 1), logvar_channels=16).double()
    sigma, u = torch.tensor([0.2, 3.0]).double(), torch.tensor([-0.7, 1.1]).double()
    denoiser.log_variance = lambda sigma: u
    weighted = u.exp().requires_grad_()
    error = weighted / denoiser.loss_weight(sigma)
    assert_close(denoiser.loss(error, sigma), 1 + u)
    u.requires_grad_()
    (slope,) = torch.autograd.grad(denoiser.loss(error.detach(), sigma).sum(), u)
    assert_close(slope, torch.zeros(2, dtype=torch.float64))


def test_training_teaches_the_head_the_error_of_each_level():
    """With errors given, minimising the loss finds their log at two levels."""
    torch.manual_seed(0)
    denoiser = EDM2Denoiser(nn.Identity(), 0, (1, 1, 1), logvar_channels=32)
    sigma = torch.tensor([0.05, 20.0])
    error = torch.tensor([0.3, 4.0]) / denoiser.loss_weight(sigma)
    optimizer = torch.optim.Adam(denoiser.logvar_linear.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        denoiser.loss(error, sigma).sum().backward()
        optimizer.step()
    want = torch.tensor([0.3, 4.0]).log()
    assert_close(denoiser.eval().log_variance(sigma), want, rtol=0, atol=0.02)


def test_a_new_head_is_of_unit_magnitude():
    torch.manual_seed(0)
    denoiser = EDM2Denoiser(nn.Identity(), 0, (1, 1, 1), logvar_channels=2048)
    u = denoiser.log_variance(torch.logspace(-2, 2, 4096))
    assert 0.5 < u.square().mean() < 2


def test_another_deviation_is_refused():
    with pytest.raises(ValueError, match="sigma_data must be a positive number"):
        EDM2Denoiser(nn.Identity(), 0, (1, 1, 1), sigma_data=0.0)
