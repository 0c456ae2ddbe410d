"""Our balls against `robustness`' own steps, recorded and run beside them."""

import pytest
import torch
from golden_files import load, tolerance
from robustness.attack_steps import L2Step, LinfStep
from torch.testing import assert_close

from robustguide.attacks import L2Ball, LinfBall

DESCRIPTION, GOLDEN = load("robustness_steps")
PAIRS = [(L2Ball, L2Step), (LinfBall, LinfStep)]


def batch(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norms(x, order=2):
    return x.flatten(1).norm(p=order, dim=1)


@pytest.mark.parametrize("case", DESCRIPTION["cases"], ids=lambda case: case["prefix"])
def test_recorded_steps(case, monkeypatch):
    given = {name: GOLDEN[f"{case['prefix']}in.{name}"] for name in ("orig", "x", "grad", "draw")}
    for source in ("rand", "randn"):
        monkeypatch.setattr(torch, source, lambda *_, **__: given["draw"])
    ball = {"2": L2Ball, "inf": LinfBall}[case["constraint"]](
        given["orig"], case["eps"], case["step_size"], box=(0.0, 1.0)
    )
    stepped = ball.step(given["x"], given["grad"])
    results = {
        "step": stepped,
        "project": ball.project(given["x"]),
        "step_then_project": ball.project(stepped),
        "random_perturb": ball.random_perturb(given["x"]),
    }
    for name, result in results.items():
        want = GOLDEN[f"{case['prefix']}out.{name}"]
        assert_close(result, want, **tolerance(DESCRIPTION, name), msg=name)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_equals_robustness_on_unit_images(ours, theirs, per_row):
    orig, x, grad = torch.rand(3, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sizes = (torch.full((5,), 0.3), torch.full((5,), 0.2)) if per_row else (0.3, 0.2)
    mine, other = ours(orig, *sizes, box=(0.0, 1.0)), theirs(orig, 0.3, 0.2)
    grad = grad - 0.5
    for a, b in [
        (mine.step(x, grad), other.step(x, grad)),
        (mine.project(x), other.project(x)),
        (mine.project(mine.step(x, grad)), other.project(other.step(x, grad))),
    ]:
        assert_close(a, b, rtol=1e-6, atol=1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        a = mine.random_perturb(orig)
        torch.manual_seed(1)
        b = other.random_perturb(orig)
    assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_noisy_image_is_left_alone(ours, theirs):
    """The trap: clamping to [0, 1] moves an untouched noisy image by many radii."""
    x = batch(2, 3, 8, 8)
    assert torch.equal(ours(x, 0.5, 0.1).project(x), x)
    assert norms(theirs(x, 0.5, 0.1).project(x) - x).min() > 5


def test_radius_and_step_per_row():
    orig, offset = batch(4, 3, 6, 6), batch(4, 3, 6, 6, seed=1)
    eps = torch.tensor([0.0, 0.5, 2.0, 100.0])
    back = L2Ball(orig, eps, 0.1).project(orig + offset) - orig
    assert_close(norms(back), torch.minimum(eps, norms(offset)), rtol=1e-5, atol=1e-6)
    back = LinfBall(orig, eps, 0.1).project(orig + offset) - orig
    want = torch.minimum(eps, norms(offset, torch.inf))
    assert_close(norms(back, torch.inf), want, rtol=1e-5, atol=1e-6)
    for ball in (L2Ball, LinfBall):
        moved = ball(orig, eps, eps).step(orig, offset) - orig
        order = 2 if ball is L2Ball else torch.inf
        assert_close(norms(moved, order), eps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ball", [L2Ball, LinfBall])
def test_channels_last_gradients(ball):
    orig, x, grad = batch(3, 4, 3, 8, 8)
    plain = ball(orig, 0.5, 0.3)
    turned = grad.contiguous(memory_format=torch.channels_last)
    assert not turned.is_contiguous()
    assert_close(plain.step(x, turned), plain.step(x, grad))
    last = ball(orig.contiguous(memory_format=torch.channels_last), 0.5, 0.3)
    assert_close(last.project(x.contiguous(memory_format=torch.channels_last)), plain.project(x))


def test_norm_floor_is_added():
    """A gradient whose norm is the floor moves half a step; no gradient moves nothing."""
    x = torch.zeros(2, 4, dtype=torch.float64)
    grad = torch.tensor([[1e-10, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    moved = L2Ball(x, 1.0, 0.2).step(x, grad)
    assert_close(norms(moved), torch.tensor([0.1, 0.0], dtype=torch.float64))


def test_random_starts_fill_the_ball():
    x, eps = torch.zeros(3, 3, 32, 32), torch.tensor([0.1, 1.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    start = L2Ball(x, eps, 0.1, generator=generator).random_perturb(x)
    assert_close(norms(start), eps)
    start = LinfBall(x, eps, 0.1, generator=generator).random_perturb(x)
    assert (norms(start, torch.inf) <= eps).all()
    # A uniform value in [-eps, eps] has the variance eps^2 / 3; 3072 draws, 5 standard errors.
    ratio = start.flatten(1).var(dim=1) / (eps**2 / 3)
    assert_close(ratio, torch.ones(3), rtol=0, atol=5 * (0.8 / 3072) ** 0.5)


@pytest.mark.parametrize("ball", [L2Ball, LinfBall])
def test_a_row_with_its_own_generator_ignores_its_neighbours(ball):
    x = batch(4, 3, 5, 5)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    together = ball(x, 0.5, 0.1, generator=generators).random_perturb(x)
    for row in range(4):
        own = [torch.Generator().manual_seed(row)]
        alone = ball(x[[row]], 0.5, 0.1, generator=own).random_perturb(x[[row]])
        assert torch.equal(alone[0], together[row])
    assert not torch.allclose(together[0] - x[0], together[1] - x[1])
