"""The ascent, on problems whose worst case is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from robustness.attack_steps import AttackerStep, L2Step, LinfStep
from torch import nn
from torch.testing import assert_close

from robustguide.attacks import L2Ball, LinfBall, pgd


class Recorded:
    """Cross-entropy of a network that keeps the rows and the losses of every call."""

    def __init__(self, network, y):
        self.network, self.y, self.calls = network, y, []

    def __call__(self, x, rows):
        logits, y = self.network(x), self.y[rows]
        loss = F.cross_entropy(logits, y, reduction="none")
        active = logits.argmax(-1) == y
        self.calls.append((rows.tolist(), loss.detach(), active))
        return loss, active


def linear(classes=2, size=12, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(size, classes, bias=False).double()


def curved(classes=3, size=12):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, 24), nn.Tanh(), nn.Linear(24, classes)).double()


def points(network, count=16, size=12, far=1.0, seed=1):
    """Random points, labelled as the network labels them."""
    generator = torch.Generator().manual_seed(seed)
    x = far * torch.randn(count, size, generator=generator, dtype=torch.float64)
    return x, network(x).argmax(-1)


def length(x, order=2):
    return torch.linalg.vector_norm(x.flatten(1), ord=order, dim=1)


def test_linear_worst_case():
    """The margin falls by eps * ||w_y - w_j||, at eps * (w_j - w_y) / ||w_j - w_y||."""
    network, eps = linear(), torch.linspace(0.1, 2.0, 16, dtype=torch.float64)
    x, y = points(network)
    adversary = pgd(Recorded(network, y), x, L2Ball, 7, 2.5 * eps / 7, eps, early_stop=False)
    w = network.weight[1 - y] - network.weight[y]
    assert_close(adversary - x, eps[:, None] * w / length(w)[:, None])
    margin = ((network.weight[y] - network.weight[1 - y]) * (adversary - x)).sum(1)
    assert_close(margin, -eps * length(w))
    adversary = pgd(Recorded(network, y), x, LinfBall, 7, 2.5 * eps / 7, eps, early_stop=False)
    assert_close(adversary - x, eps[:, None] * w.sign())


@pytest.mark.parametrize("ball", [L2Ball, LinfBall])
def test_loss_never_falls_on_a_linear_network(ball):
    losses = Recorded(linear(classes=5), points(linear(classes=5))[1])
    pgd(losses, points(linear(classes=5))[0], ball, 10, 0.1, 0.6, early_stop=False)
    path = torch.stack([loss for _, loss, _ in losses.calls])
    assert (path.diff(dim=0) >= -1e-12).all()
    assert (path[-1] > path[0] + 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ball, order", [(L2Ball, 2), (LinfBall, torch.inf)])
@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_the_ball(ball, order, dtype, random_start):
    network = curved().to(dtype)
    x, eps = points(curved())[0].to(dtype), torch.linspace(0, 2, 16, dtype=dtype)
    losses = Recorded(network, network(x).argmax(-1))
    adversary = pgd(
        losses, x, ball, 5, eps, eps, random_start=random_start, restarts=2, early_stop=False
    )
    assert adversary.dtype == dtype
    assert (length(adversary - x, order) <= eps * (1 + 1e-5) + 1e-6).all()
    assert torch.equal(adversary[0], x[0])
    assert length(adversary - x, order)[-1] > 0.5


def test_misclassified_rows_rest():
    network = curved()
    x, y = points(network)
    wrong = torch.arange(16) % 3 == 0
    adversary = pgd(Recorded(network, (y + wrong) % 3), x, L2Ball, 7, 0.1, 0.4)
    assert torch.equal(adversary[wrong], x[wrong])
    assert (length(adversary - x)[~wrong] > 0.05).all()


def test_fallen_rows_leave_the_batch():
    network = linear()
    x, y = points(network)
    steps, step_size = 8, 0.1
    losses = Recorded(network, y)
    adversary = pgd(losses, x, L2Ball, steps, step_size, 10.0)
    w = length(network.weight[:1] - network.weight[1:])
    margin = (network(x).gather(1, y[:, None]) - network(x).gather(1, 1 - y[:, None]))[:, 0]
    needed = (margin / (w * step_size)).floor() + 1
    calls = torch.zeros(16)
    for rows, _, _ in losses.calls:
        calls[rows] += 1
    assert_close(calls, (needed + 1).clamp(max=steps).float().detach())  # one to see that it fell
    assert calls.sum() < steps * 16
    assert_close(length(adversary - x), needed.clamp(max=steps) * step_size)


def test_without_early_stop_every_row_takes_every_step():
    network = curved()
    x, y = points(network)
    losses = Recorded(network, y)
    pgd(losses, x, L2Ball, 6, 0.5, 2.0, early_stop=False)
    assert [rows for rows, _, _ in losses.calls] == [list(range(16))] * 6
    assert not losses.calls[-1][2].all()


def test_no_synchronisation_without_early_stop():
    """A tensor on the meta device has no values, so reading one would fail."""
    network = nn.Linear(12, 3, device="meta")

    def losses(x, rows):
        logits = network(x)
        y = torch.zeros(len(rows), dtype=torch.long, device="meta")
        return F.cross_entropy(logits, y, reduction="none"), logits.argmax(-1) == y

    x, eps = torch.zeros(4, 12, device="meta"), torch.ones(4, device="meta")
    adversary = pgd(losses, x, L2Ball, 3, eps, eps, early_stop=False, restarts=1)
    assert adversary.shape == x.shape
    with pytest.raises(NotImplementedError, match="meta"):
        pgd(losses, x, L2Ball, 3, eps, eps)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.enable_grad])
def test_opens_its_own_gradient_scope(guard):
    network = curved()
    x, y = points(network)
    with guard():
        adversary = pgd(Recorded(network, y), x, L2Ball, 5, 0.2, 1.0, restarts=1)
    assert not adversary.requires_grad
    assert_close(adversary, pgd(Recorded(network, y), x, L2Ball, 5, 0.2, 1.0))
    assert length(adversary - x).max() > 0.5
    assert all(weight.grad is None for weight in network.parameters())


def test_input_with_a_graph_is_only_read():
    network = linear()
    x, y = points(network)
    x = (2 * x).requires_grad_()
    adversary = pgd(Recorded(network, y), x, L2Ball, 2, 0.1, 0.2)
    assert not adversary.requires_grad and x.grad is None


def test_inference_mode_is_refused():
    network = linear()
    x, y = points(network)
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"Trainer\(inference_mode=False\)"),
    ):
        pgd(Recorded(network, y), x, L2Ball, 2, 0.1, 0.2)
    with torch.inference_mode():
        x = x.clone()
    with pytest.raises(RuntimeError, match=r"Trainer\(inference_mode=False\)"):
        pgd(Recorded(network, y), x, L2Ball, 2, 0.1, 0.2)


def well(x, rows):
    """A loss that rises to both sides of 0, where only the left side is misclassified."""
    return x[:, 0] ** 2, x[:, 0] > -0.9


def test_restarts_find_what_the_slope_hides():
    x = torch.full((64, 1), 0.1)
    single = pgd(well, x, LinfBall, 10, 0.3, 1.1)
    assert_close(single, torch.full_like(x, 1.2))
    adversary = pgd(
        well, x, LinfBall, 10, 0.3, 1.1, restarts=1, generator=torch.Generator().manual_seed(0)
    )
    fallen = adversary[:, 0] <= -0.9
    # A start is uniform in [-1, 1.2]; those below 0 fall. 64 draws at p = 0.45, 4 deviations.
    assert abs(int(fallen.sum()) - 64 / 2.2) < 4 * math.sqrt(64 * 0.45 * 0.55)
    assert_close(adversary[~fallen], single[~fallen])  # the rival is no better there
    adversary = pgd(
        well, x, LinfBall, 10, 0.3, 1.1, restarts=30, generator=torch.Generator().manual_seed(0)
    )
    assert (adversary <= -0.9).all()


@pytest.mark.parametrize("early_stop", [True, False])
def test_restarts_are_never_worse(early_stop):
    network = curved()
    x, y = points(network, count=64)
    judge = Recorded(network, y)
    found = []
    for restarts in (0, 6):
        generator = torch.Generator().manual_seed(0)
        adversary = pgd(
            judge, x, L2Ball, 2, 0.15, 0.4,
            restarts=restarts, early_stop=early_stop, generator=generator,
        )  # fmt: skip
        loss, active = judge(adversary, torch.arange(64))
        found.append((loss.detach(), active))
    (loss, active), (best, still) = found
    assert (still <= active).all()
    both = still & active
    assert (best[both] >= loss[both]).all()
    assert (best > loss + 1e-6).any()


def test_first_fooling_run_is_kept():
    """Later runs reach a larger loss, but a row that has fallen takes no part in them."""
    x, y = points(curved(), count=64)

    def attack(early_stop, restarts):
        generator = torch.Generator().manual_seed(0)
        return pgd(
            Recorded(curved(), y), x, L2Ball, 3, 0.3, 0.6,
            restarts=restarts, early_stop=early_stop, generator=generator,
        )  # fmt: skip

    for early_stop in (True, False):
        first, last = attack(early_stop, 0), attack(early_stop, 4)
        fallen = curved()(first).argmax(-1) != y
        assert 0 < fallen.sum() < 64
        assert torch.equal(last[fallen], first[fallen])


def test_random_start_is_per_row_and_seeded():
    network = curved()
    x, y = points(network, count=4)

    def attack(rows):
        generators = [torch.Generator().manual_seed(int(row)) for row in rows]
        return pgd(
            Recorded(network, y[rows]), x[rows], L2Ball, 3, 0.1, 0.3,
            random_start=True, restarts=2, generator=generators,
        )  # fmt: skip

    together = attack(torch.arange(4))
    alone = torch.cat([attack(torch.tensor([row])) for row in range(4)])
    assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(together, pgd(Recorded(network, y), x, L2Ball, 3, 0.1, 0.3))


def test_random_starts_do_not_depend_on_who_has_fallen():
    network = curved()
    x, y = points(network, count=8)
    states = []
    for labels in (y, (y + 1) % 3):  # the second batch has fallen before it starts
        generator = torch.Generator().manual_seed(0)
        pgd(Recorded(network, labels), x, L2Ball, 2, 0.1, 0.2, restarts=2, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_empty_batch():
    x, y = points(curved())
    assert pgd(Recorded(curved(), y[:0]), x[:0], L2Ball, 3, 0.1, 0.2, restarts=1).shape == (0, 12)


class Coordinate(AttackerStep):
    """A step class in `robustness`' manner: moves the steepest value only."""

    def project(self, x):
        return self.orig_input + (x - self.orig_input).clamp(-self.eps, self.eps)

    def step(self, x, g):
        steepest = F.one_hot(g.abs().argmax(1), g.shape[1])
        return x + self.step_size * g.sign() * steepest

    def random_perturb(self, x):
        return x


def test_their_steps_plug_into_our_loop():
    network = linear()
    x, y = points(network, far=0.05)
    x, eps = x + 0.5, torch.linspace(0.05, 0.2, 16, dtype=torch.float64)  # inside [0, 1]
    losses = Recorded(network, network(x).argmax(-1))
    theirs = pgd(losses, x, LinfStep, 6, eps / 3, eps, early_stop=False)
    assert_close(theirs, pgd(losses, x, LinfBall, 6, eps / 3, eps, early_stop=False))
    assert_close(length(theirs - x, torch.inf), eps)
    theirs = pgd(losses, x, L2Step, 6, 0.05, 0.2)
    assert_close(theirs, pgd(losses, x, L2Ball, 6, 0.05, 0.2), rtol=0, atol=1e-6)
    custom = pgd(losses, x, Coordinate, 4, 0.1, 0.3, early_stop=False)
    y = losses.y
    steepest = (network.weight[1 - y] - network.weight[y]).abs().argmax(1)
    assert_close((custom - x).abs(), 0.3 * F.one_hot(steepest, 12).double())


def robustness_loop(network, x, y, step_class, *, eps, step_size, iterations):
    """The iteration of `robustness`' Attacker: one step object, every row, an image at the end."""
    step = step_class(eps=eps, orig_input=x, step_size=step_size)
    x = step.random_perturb(x)
    for _ in range(iterations):
        x = x.clone().detach().requires_grad_()
        loss = F.cross_entropy(network(step.to_image(x)), y, reduction="none").mean()
        (grad,) = torch.autograd.grad(loss, [x])
        with torch.no_grad():
            x = step.project(step.step(x, grad))
    return step.to_image(x)


@pytest.mark.parametrize("ours, theirs", [(L2Ball, L2Step), (LinfBall, LinfStep)])
def test_our_balls_plug_into_their_loop(ours, theirs):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
    x, y = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    sizes = {"eps": 0.3, "step_size": 0.1, "iterations": 5}
    found = []
    for step_class in (lambda **given: ours(**given, box=(0.0, 1.0)), theirs):
        torch.manual_seed(1)
        found.append(robustness_loop(network, x, y, step_class, **sizes))
    assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert found[0].min() >= 0 and found[0].max() <= 1


def test_the_best_point_is_the_one_of_largest_loss_on_the_way():
    """A step as long as the ball is wide overshoots the top of a parabola at 0.28."""
    seen = []

    def losses(x, rows):
        seen.append((x.detach().clone(), -(x - 0.28).square().sum(-1)))
        return seen[-1][1], torch.ones(len(rows), dtype=torch.bool)

    x, y = torch.tensor([[0.0], [0.25]]), torch.arange(2)
    best = pgd(losses, x, LinfBall, 5, 0.2, 1.0, early_stop=False, keep_best=True)
    points, values = (torch.stack(each) for each in zip(*seen, strict=True))
    assert len(seen) == 6  # the last point is evaluated as well
    want = points.gather(0, values.detach().argmax(0)[None, :, None])[0]
    assert torch.equal(best, want)
    torch.testing.assert_close(best, torch.tensor([[0.2], [0.25]]))
    last = pgd(losses, x, LinfBall, 5, 0.2, 1.0, early_stop=False)
    assert (losses(last, y)[0] <= losses(best, y)[0]).all()
    assert not torch.equal(best, last)


def test_rows_that_rest_have_no_best_point():
    with pytest.raises(ValueError, match=r"keep_best wants every row.*early_stop: false"):
        pgd(lambda x, rows: (x, x), torch.zeros(1, 1), LinfBall, 1, 0.1, 0.1, keep_best=True)


def test_a_probe_spares_gradients_alone():
    """The rows that are wrong at x are asked for once, without a graph."""
    network = curved()
    x, y = points(network)
    y[::2] = (y[::2] + 1) % 3
    losses, probed = Recorded(network, y), Recorded(network, y)
    want = pgd(losses, x, L2Ball, 4, 0.3, 1.0)
    assert torch.equal(pgd(probed, x, L2Ball, 4, 0.3, 1.0, probe=True), want)
    assert [rows for rows, _, _ in probed.calls[:2]] == [list(range(16)), list(range(1, 16, 2))]
    assert [rows for rows, *_ in probed.calls[2:]] == [rows for rows, *_ in losses.calls[1:]]
    everywhere_wrong = Recorded(network, (network(x).argmax(-1) + 1) % 3)
    assert torch.equal(pgd(everywhere_wrong, x, L2Ball, 4, 0.3, 1.0, probe=True), x)
    assert len(everywhere_wrong.calls) == 1


@pytest.mark.parametrize("early_stop", [True, False])
def test_batches_of_few_sizes(early_stop):
    """Whoever falls, the network sees these sizes alone, and the adversaries are the same."""
    network = curved()
    x, y = points(network)
    y[::3] = (y[::3] + 1) % 3
    plain, losses = Recorded(network, y), Recorded(network, y)
    given = dict(early_stop=early_stop, restarts=1)
    starts = [torch.Generator().manual_seed(0) for _ in range(2)]
    want = pgd(plain, x, L2Ball, 6, 0.2, 1.0, **given, generator=starts[0])
    made = pgd(
        losses, x, L2Ball, 6, 0.2, 1.0, **given, generator=starts[1], batch_sizes=[6, 16, 11]
    )
    assert_close(made, want, rtol=0, atol=1e-12)
    sizes = [len(rows) for rows, _, _ in plain.calls]
    assert [len(rows) for rows, _, _ in losses.calls] == [
        min(size for size in (6, 11, 16) if size >= count) for count in sizes
    ]
    assert not early_stop or len(set(sizes)) > 3
    with pytest.raises(ValueError, match=r"16 rows.*batches of \[4, 8\]"):
        pgd(losses, x, L2Ball, 1, 0.2, 1.0, batch_sizes=[8, 4])


def test_a_start_that_is_told():
    network = linear()
    x, y = points(network)
    start = x + 0.05
    losses = Recorded(network, y)
    adversary = pgd(losses, x, L2Ball, 1, 0.1, 1.0, start=start, early_stop=False)
    w = network.weight[1 - y] - network.weight[y]
    assert_close(adversary, start + 0.1 * w / length(w)[:, None])
    with pytest.raises(ValueError, match="random_start: false"):
        pgd(losses, x, L2Ball, 1, 0.1, 1.0, start=start, random_start=True)
