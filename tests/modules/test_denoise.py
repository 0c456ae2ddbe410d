import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

from robustguide.checkpoints import build, load_denoiser
from robustguide.data import Images
from robustguide.denoisers import EDM2Denoiser, EDMDenoiser, EpsDenoiser
from robustguide.interfaces import Denoiser, Prediction
from robustguide.modules import CleanImage, Denoising, Goal, Target
from robustguide.nets import EDM2UNet
from robustguide.noise import LogNormal, UniformT, linear_levels
from robustguide.samplers.seeds import mixed


class Spy(Denoiser):
    """Answers with a constant and keeps the labels it is given."""

    def __init__(self, num_classes=10, shape=(1, 8, 8), has_null=True):
        super().__init__()
        self.num_classes, self.shape, self.has_null = num_classes, shape, has_null
        self.value = nn.Parameter(torch.zeros(()))
        self.y, self.sigma = [], []

    def predict(self, x, sigma, y):
        self.y.append(y)
        self.sigma.append(sigma)
        return Prediction(self.value.expand_as(x))


@pytest.fixture
def noise():
    return UniformT(linear_levels())


def randn(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_of_an_eps_network_is_the_error_of_its_noise(noise):
    """Ho et al. (2020), eq. 14, written with the network's own inputs and outputs."""
    denoiser = build(tiny.denoiser()).eval()
    x_0, y, _ = tiny.batch()
    t = torch.tensor([0, 10, 200, 500, 800, 999])
    alpha_bar = torch.as_tensor(linear_levels().alpha_bars)[t]
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt().float()
    eps = randn(*x_0.shape)
    loss = Denoising(denoiser, noise).loss(x_0, y, sigma, eps)
    scale = alpha_bar.float()[:, None, None, None]
    x_t = scale.sqrt() * x_0 + (1 - scale).sqrt() * eps
    torch.testing.assert_close(
        loss, F.mse_loss(denoiser.net(x_t, t.float(), y), eps), rtol=1e-3, atol=0
    )


def test_the_loss_of_a_preconditioned_network_is_that_of_edm():
    """Karras et al. (2022), eq. 8: lambda(sigma) c_out**2 is 1, so the raw net has unit weight."""
    net = build(tiny.mlp(num_classes=10, num_null_labels=1)).eval()
    denoiser = EDMDenoiser(net, num_classes=10, shape=(1, 8, 8))
    x_0, y, _ = tiny.batch()
    sigma, eps = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 50.0]), randn(*x_0.shape)
    s = sigma[:, None, None, None]
    x, total = x_0 + s * eps, s**2 + 0.25
    target = (x_0 - 0.25 / total * x) / (0.5 * s / total.sqrt())
    answer = net(x / total.sqrt(), sigma.log() / 4, y)
    loss = Denoising(denoiser, LogNormal()).loss(x_0, y, sigma, eps)
    torch.testing.assert_close(loss, F.mse_loss(answer, target), rtol=2e-3, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_labels_is_dropped(noise, share, tmp_path):
    spy = Spy()
    module = Denoising(spy, noise, label_dropout=share)
    data = Images(batch_size=400)
    tiny.trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(module, datamodule=data)
    y = torch.cat(spy.y[1:])  # the first call tries a blank image
    dropped = (y == 10).float().mean()
    assert len(y) == 1200
    assert dropped == share if share in (0, 1) else abs(dropped - share) < 4 * (0.21 / 1200) ** 0.5


def test_a_step_draws_from_its_seed(noise, tmp_path):
    spy = Spy()
    module = Denoising(spy, noise, label_dropout=0.0, seed=5)
    tiny.trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(
        module, datamodule=Images(batch_size=8)
    )
    for step, sigma in enumerate(spy.sigma[1:]):
        torch.manual_seed(mixed(5, step, 0))
        assert torch.equal(sigma, noise.sample(8, "cpu"))


def test_validation_is_one_number_for_any_batch_size(noise, tmp_path):
    module, losses = Denoising(build(tiny.denoiser()), noise), []
    for size in (60, 7):
        data = Images(eval_batch_size=size, eval_limit=60)
        (found,) = tiny.trainer(tmp_path).validate(module, datamodule=data, verbose=False)
        losses.append(found["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert 0.5 < losses[0] < 3


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
def test_a_loaded_denoiser_trains_again(runs, noise, tmp_path):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    before = {name: value.clone() for name, value in denoiser.named_parameters()}
    module = Denoising(denoiser, noise, rates={"net.labels": 0})
    tiny.trainer(tmp_path).fit(module, datamodule=Images(batch_size=64, eval_limit=20))
    same = {
        name for name, value in denoiser.named_parameters() if torch.equal(before[name], value)
    }
    assert same == {"net.labels.weight"}
    training = {name for name, module in denoiser.named_modules() if not module.training}
    assert training == {"net.labels"}


def test_ema_is_what_is_exported(runs):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    assert isinstance(denoiser, EpsDenoiser)
    assert denoiser.metadata.weights == "ema" and denoiser.metadata.extra == {"steps": 60}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_lies_between_0_and_1(noise, share):
    with pytest.raises(ValueError, match=r"label_dropout is a share of labels in \[0, 1\], got"):
        Denoising(Spy(), noise, label_dropout=share)


def test_labels_are_dropped_only_for_a_null_label(noise):
    with pytest.raises(
        ValueError, match=r"label_dropout=0\.1 needs a null label.*num_null_labels: 1"
    ):
        Denoising(Spy(has_null=False), noise)
    assert Denoising(Spy(has_null=False), noise, label_dropout=0).label_dropout == 0


@pytest.mark.parametrize(
    ("spy", "message"),
    [
        (Spy(num_classes=7), r"data's num_classes is 10, the denoiser's 7; set"),
        (Spy(shape=(3, 8, 8)), r"data's shape is \(1, 8, 8\), the denoiser's \(3, 8, 8\); set"),
    ],
)
def test_other_data_than_the_denoiser_knows(spy, message, noise, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path).fit(Denoising(spy, noise), datamodule=Images(batch_size=32))


def test_edm2_weighs_its_loss_by_what_it_learns():
    """Every parameter has a gradient, the log-variance too. Karras et al. (2024), eq. 21."""
    torch.manual_seed(0)
    net = EDM2UNet(8, 1, 3, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    denoiser = EDM2Denoiser(net, 3, (1, 8, 8), logvar_channels=4)
    for name in ("logvar_linear.weight", "net.out_gain"):
        denoiser.get_parameter(name).data.fill_(0.5)
    module = Denoising(denoiser, LogNormal(), label_dropout=0.0)
    x_0, noise = torch.randn(2, 4, 1, 8, 8)
    y, sigma = torch.arange(4) % 3, torch.linspace(0.1, 3, 4)
    loss = module.loss(x_0, y, sigma, noise)
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    assert denoiser.get_parameter("logvar_linear.weight").grad.abs().amax() > 0
    with torch.no_grad():
        x = x_0 + sigma[:, None, None, None] * noise
        error = (denoiser(x, sigma, y) - x_0).square().flatten(1).mean(1)
        weight, u = (sigma**2 + 0.25) / (sigma * 0.5) ** 2, denoiser.log_variance(sigma)
    torch.testing.assert_close(loss, (weight * error / u.exp() + u).mean())


class Negative(Target):
    """A user's own: the picture with its colours exchanged; counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def attach(self, denoiser):
        self.calls.append("attach")

    def announce(self):
        self.calls.append("announce")

    def forward(self, denoiser, x_0, x, sigma, y, u):
        return Goal(-x_0, {"brightness": x_0.mean()})

    def update(self, denoiser):
        self.calls.append("update")


def test_a_target_of_the_users_own(noise, tmp_path):
    target, spy = Negative(), Spy()
    module = Denoising(spy, noise, label_dropout=0.0, target=target)
    x_0, y, _ = tiny.batch()
    sigma = torch.full((6,), 2.0)
    loss = module.loss(x_0, y, sigma, randn(*x_0.shape))
    torch.testing.assert_close(loss, (spy.value + x_0).square().mean() / 4)
    trainer = tiny.trainer(
        tmp_path, max_steps=3, limit_val_batches=0, accumulate_grad_batches=2, log_every_n_steps=1
    )
    trainer.fit(module, datamodule=Images(batch_size=8))
    assert target.calls == ["attach", "announce", "update", "update", "update"]
    assert -1 < trainer.logged_metrics["train/brightness"] < 0


def test_a_target_without_parameters_leaves_checkpoints_as_they_are(noise):
    module = Denoising(Spy(), noise)
    assert isinstance(module.target, CleanImage)
    assert module.state_dict().keys() == {"denoiser.value"}
