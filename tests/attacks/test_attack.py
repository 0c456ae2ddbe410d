"""Attacks on noisy images: units, the classifier left as it was, and what YAML can name."""

import json

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from robustness.attack_steps import AttackerStep, L2Step, RandomStep
from torch import nn
from torch.testing import assert_close

from robustguide.attacks import PGD, Attack, L2Ball, LinfBall, Radius, SignalRadius
from robustguide.noise import expand, vp_scale

SIGMA = torch.tensor([0.0, 0.1, 1.0, 10.0, 100.0, 0.5])


class Linear(nn.Module):
    """Logits linear in x_t."""

    def __init__(self, classes=2, size=12):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, size, dtype=torch.float64))

    def forward(self, x, sigma):
        return x / vp_scale(sigma)[:, None] @ self.weight.T


class Normed(nn.Module):
    """A small image classifier with batch statistics, dropout and a frozen part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.frozen = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * 64, 3)
        self.seen = []

    def forward(self, x, sigma):
        self.seen.append([module.training for module in self.modules()])
        h = x / vp_scale(sigma)[:, None, None, None]
        return self.head(self.drop(self.frozen(self.norm(self.conv(h)).tanh())).flatten(1))


def images(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    return (1 + SIGMA[:count, None, None, None]) * noise, SIGMA[:count]


def labelled():
    """A partly trained-on classifier in a mix of modes, and images that it classifies right."""
    classifier = Normed()
    classifier(*images(seed=2))  # running statistics other than those of a new layer
    classifier.train()
    classifier.frozen.eval()
    x, sigma = images()
    with torch.no_grad():
        y = classifier.eval()(x, sigma).argmax(-1)
    classifier.train()
    classifier.frozen.eval()
    classifier.seen.clear()
    return classifier, x, sigma, y


def lengths(x):
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("ball, order", [(L2Ball, 2), (LinfBall, torch.inf)])
def test_radius_is_in_units_of_x_t(ball, order):
    classifier = Linear()
    sigma = SIGMA.double()
    x = vp_scale(sigma)[:, None] * torch.randn(6, 12, dtype=torch.float64)
    y = classifier(x, sigma).argmax(-1)
    adversary = PGD(0.5, 7, ball, early_stop=False)(classifier, x, sigma, y)
    moved = (adversary - x) / vp_scale(sigma)[:, None]
    assert_close(moved.norm(p=order, dim=1), torch.full_like(sigma, 0.5))
    w = (classifier.weight[1 - y] - classifier.weight[y]).detach()
    worst = w / w.norm(dim=1, keepdim=True) if order == 2 else w.sign()
    assert_close(moved, 0.5 * worst)


def test_signal_radius_is_constant_in_units_of_x_0():
    classifier = Linear()
    sigma = SIGMA.double()
    x = vp_scale(sigma)[:, None] * torch.randn(6, 12, dtype=torch.float64)
    y = classifier(x, sigma).argmax(-1)
    adversary = PGD(SignalRadius(0.5), early_stop=False)(classifier, x, sigma, y)
    assert_close(lengths(adversary - x), torch.full_like(sigma, 0.5))


def test_floor_is_that_of_the_gradient_in_x_t():
    """Where the gradient in x_t has norm 1e-10 a step is half as long, whatever sigma."""
    sigma = torch.tensor([0.0, 3.0, 100.0], dtype=torch.float64)

    class Faint(nn.Module):
        def forward(self, x, sigma):
            margin = 2e-10 * (x / vp_scale(sigma)[:, None])[:, 0]  # at x = 0 both classes are even
            return torch.stack([margin, torch.zeros_like(margin)], dim=1)

    x, y = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    adversary = PGD(1.0, 1, step_fraction=0.2, early_stop=False)(Faint(), x, sigma, y)
    moved = lengths(adversary) / vp_scale(sigma)
    assert_close(moved, torch.full_like(sigma, 0.1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 8.0])
def test_the_step_is_that_of_the_tempered_cross_entropy(temperature):
    """Linear logits W x: the gradient is sum_k q_k w_k - w_y with q = softmax(W x / T)."""
    classifier = Linear(classes=4)
    sigma = SIGMA.double()
    x_t = 0.2 * torch.randn(6, 12, dtype=torch.float64)  # gradients well above the floor of 1e-10
    x = vp_scale(sigma)[:, None] * x_t
    y = classifier(x, sigma).argmax(-1)
    attack = PGD(0.5, 1, temperature=temperature)
    moved = (attack(classifier, x, sigma, y) - x) / vp_scale(sigma)[:, None]
    weight = classifier.weight.detach()
    gradient = (x_t @ weight.T / temperature).softmax(-1) @ weight - weight[y]
    assert_close(moved, 0.5 * gradient / gradient.norm(dim=1, keepdim=True))


def test_a_temperature_undoes_a_factor_bit_for_bit():
    """So 1 is what no temperature is; a power of two rounds nothing."""
    classifier, x, sigma, y = labelled()
    plain = PGD(0.5, temperature=1.0)(classifier, x, sigma, y)
    assert torch.equal(plain, PGD(0.5)(classifier, x, sigma, y))
    handle = classifier.register_forward_hook(lambda *given: 4 * given[-1])
    assert torch.equal(PGD(0.5, temperature=4.0)(classifier, x, sigma, y), plain)
    handle.remove()


def test_a_temperature_wakes_a_saturated_row():
    """A margin of 1000 leaves no gradient in float32; over 100 it has one, in its direction."""
    classifier = Linear().float()
    weight = classifier.weight.detach()
    toward = (weight[1] - weight[0]) / (weight[1] - weight[0]).norm()
    x = (-1000 / (weight[1] - weight[0]).norm() * toward)[None]
    sigma, y = torch.zeros(1), torch.tensor([0])
    assert torch.equal(PGD(0.5)(classifier, x, sigma, y), x)
    moved = PGD(0.5, temperature=100.0)(classifier, x, sigma, y) - x
    assert_close(moved, 0.5 * toward[None], rtol=1e-3, atol=1e-4)


def test_misclassified_images_come_back_bit_for_bit():
    classifier, x, sigma, y = labelled()
    y = torch.where(torch.arange(6) % 2 == 0, y, (y + 1) % 3)
    inputs = []
    classifier.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    adversary = PGD(1.0)(classifier, x, sigma, y)
    assert torch.equal(inputs[0], x)  # the verdict is on the image itself
    assert torch.equal(adversary[1::2], x[1::2])
    assert (lengths(adversary - x)[::2] > 0.1).all()


@pytest.mark.parametrize("in_training_mode", [False, True])
def test_classifier_comes_back_as_it_was(in_training_mode):
    classifier, x, sigma, y = labelled()
    classifier.head.weight.grad = torch.ones_like(classifier.head.weight)
    modes = [module.training for module in classifier.modules()]
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    earlier = F.cross_entropy(classifier(x, sigma), y)  # its graph must outlive the attack
    state |= {name: value.clone() for name, value in classifier.named_buffers()}
    attack = PGD(0.5, restarts=1, early_stop=False, in_training_mode=in_training_mode)
    adversary = attack(classifier, x, sigma, y)
    assert (lengths(adversary - x) > 0).all()
    assert [module.training for module in classifier.modules()] == modes
    assert_close(dict(classifier.state_dict()), state, rtol=0, atol=0)
    grads = {name: weight.grad for name, weight in classifier.named_parameters()}
    assert torch.equal(grads.pop("head.weight"), torch.ones_like(classifier.head.weight))
    assert set(grads.values()) == {None}
    during = classifier.seen[1:]
    assert during == [modes if in_training_mode else [False] * len(modes)] * len(during)
    earlier.backward()


def test_modes_come_back_after_an_error():
    classifier, x, sigma, y = labelled()
    classifier.head.bias.requires_grad_(False)
    modes = [module.training for module in classifier.modules()]
    with pytest.raises(IndexError):
        PGD(0.5)(classifier, x, sigma, y + 3)
    assert [module.training for module in classifier.modules()] == modes
    frozen = [name for name, p in classifier.named_parameters() if not p.requires_grad]
    assert frozen == ["head.bias"]


def test_parameters_are_frozen_meanwhile():
    """So that a graph keeps nothing for their gradients."""
    classifier, x, sigma, y = labelled()
    wanted = []
    classifier.register_forward_pre_hook(
        lambda *_: wanted.append(any(p.requires_grad for p in classifier.parameters()))
    )
    PGD(0.5, steps=2, restarts=1)(classifier, x, sigma, y)
    assert len(wanted) > 3 and not any(wanted)
    assert all(p.requires_grad for p in classifier.parameters())


def test_a_start_is_an_offset_of_x_t_within_the_ball():
    classifier, x, sigma, y = labelled()
    offset = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    still = PGD(0.5, steps=1, step_fraction=1e-12, early_stop=False)
    moved = (still(classifier, x, sigma, y, start=offset) - x) / expand(vp_scale(sigma), x)
    assert_close(moved, 0.5 * offset / expand(lengths(offset), x), rtol=1e-5, atol=1e-6)
    near = 0.1 * offset / expand(lengths(offset), x)
    moved = (still(classifier, x, sigma, y, start=near) - x) / expand(vp_scale(sigma), x)
    assert_close(moved, near, rtol=1e-5, atol=1e-6)


def test_works_in_no_grad_and_refuses_inference_mode():
    classifier, x, sigma, y = labelled()
    with torch.no_grad():
        adversary = PGD(0.5)(classifier, x, sigma, y)
    outside = PGD(0.5)(classifier, x.clone().requires_grad_(), sigma, y)
    assert not outside.requires_grad
    assert_close(outside, adversary, rtol=0, atol=0)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode=False"):
        PGD(0.5)(classifier, x, sigma, y)


@pytest.mark.parametrize("early_stop", [True, False])
def test_autocast_leaves_the_training_step_its_gradients(early_stop):
    """Casts cached while attacking must not cut the weights off from the loss that follows."""
    classifier, x, sigma, y = labelled()
    classifier.drop.p = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        adversary = PGD(0.5, restarts=1, early_stop=early_stop)(classifier, x, sigma, y)
        F.cross_entropy(classifier(adversary, sigma), y).backward()
    assert adversary.dtype == torch.float32
    assert all(weight.grad.abs().sum() > 0 for weight in classifier.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loss_is_at_least_float32(dtype, monkeypatch):
    seen = []

    def cross_entropy(logits, *given, **options):
        seen.append(logits.dtype)
        return torch.nn.functional.nll_loss(logits.log_softmax(-1), *given, **options)

    monkeypatch.setattr(F, "cross_entropy", cross_entropy)
    classifier, x, sigma, y = labelled()
    classifier.register_forward_hook(lambda *given: given[-1].to(dtype))
    PGD(0.5, 2)(classifier, x, sigma, y)
    assert seen == [torch.promote_types(dtype, torch.float32)] * 2


def test_memory_format_does_not_matter():
    classifier, x, sigma, y = labelled()
    plain = PGD(0.5)(classifier, x, sigma, y)
    turned = x.contiguous(memory_format=torch.channels_last)
    assert_close(PGD(0.5)(classifier, turned, sigma, y), plain, rtol=1e-4, atol=1e-4)


def test_random_starts_of_an_image_are_its_own():
    classifier, x, sigma, y = labelled()
    attack = PGD(0.3, 3, random_start=True, restarts=1)
    classifier.eval()

    def run(rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return attack(classifier, x[rows], sigma[rows], y[rows], generators)

    together, alone = run([0, 1, 2, 3]), torch.cat([run([row]) for row in range(4)])
    scale = vp_scale(sigma[:4])[:, None, None, None]
    assert_close(together / scale, alone / scale, rtol=1e-4, atol=1e-4)


def test_any_step_class_plugs_in():
    """One that takes no generator draws from the global one."""
    classifier, x, sigma, y = labelled()
    adversary = PGD(0.5, 2, RandomStep)(classifier, x, sigma, y, torch.Generator())
    assert (lengths(adversary - x) > 0).all()
    with pytest.warns(UserWarning, match=r"L2Step clamps to \[0, 1\].*L2Ball"):
        PGD(0.5, ball=L2Step)


@pytest.mark.parametrize(
    "attack, text",
    [
        (PGD(0.5, step_fraction=1 / 6),
         "L2, radius 0.5 in x_t units on the [-1,1] scale, PGD-7, step 0.0833"),
        (PGD(0.03, 20, LinfBall, random_start=True, restarts=2),
         "Linf, radius 0.03 in x_t units on the [-1,1] scale, PGD-20, step 0.00375, random start, "
         "2 restarts"),
        (PGD(SignalRadius(0.5), 5, RandomStep, early_stop=False, in_training_mode=True),
         "RandomStep, radius 0.5*sqrt(alpha_bar) in x_t units on the [-1,1] scale, PGD-5, step "
         "0.5 of the radius, no early stop, in training mode"),
        (PGD(0.5, 5, temperature=4.0),
         "L2, radius 0.5 in x_t units on the [-1,1] scale, PGD-5, step 0.25, logits over 4"),
    ],
)  # fmt: skip
def test_threat_model_is_printed(attack, text):
    assert str(attack) == text


@pytest.mark.parametrize("radius", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [PGD, SignalRadius])
def test_bad_radius(kind, radius):
    with pytest.raises(ValueError, match=rf"radius.*got {radius}.*x_t units"):
        kind(radius)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": 0}, "at least 1 step, got steps=0"),
        ({"restarts": -1}, "got -1; 0 is none"),
        ({"step_fraction": 0.0}, "got 0.0; leave it out"),
        ({"step_fraction": float("nan")}, "got nan; leave it out"),
        ({"temperature": 0.0}, "positive number, got 0.0; 1 leaves them"),
        ({"temperature": float("nan")}, "positive number, got nan"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        PGD(0.5, **given)


def build(attack: Attack) -> Attack:
    return attack


def parsed(**init_args):
    attack = json.dumps({"class_path": "robustguide.attacks.PGD", "init_args": init_args})
    return auto_cli(build, args=[f"--attack={attack}"], as_positional=False)


class Grown(Radius):
    def __init__(self, radius: float) -> None:
        self.radius = radius

    def __call__(self, sigma):
        return self.radius * vp_scale(sigma)


def test_yaml_names_everything():
    assert parsed(radius=0.5) == PGD(0.5)
    given = parsed(radius=0.1, steps=3, ball="robustguide.attacks.LinfBall", step_fraction=0.25)
    assert given == PGD(0.1, 3, LinfBall, 0.25)
    assert parsed(radius=0.5, ball="robustness.attack_steps.RandomStep").ball is RandomStep
    assert issubclass(given.ball, AttackerStep)
    signal = {"class_path": "robustguide.attacks.SignalRadius", "init_args": {"radius": 0.2}}
    assert parsed(radius=signal) == PGD(SignalRadius(0.2))
    grown = {"class_path": f"{__name__}.Grown", "init_args": {"radius": 0.2}}
    assert isinstance(parsed(radius=grown).radius, Grown)


@pytest.mark.parametrize("ball", ["torch.nn.Linear", "robustguide.attacks.Nothing"])
def test_yaml_refuses_what_is_no_step(ball, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(radius=0.5, ball=ball)
    assert stop.value.code == 2
    assert ball in capsys.readouterr().err
