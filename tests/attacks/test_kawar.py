"""The loop against the published training recipe, recorded on ADM's classifier."""

import pytest
import torch
import torch.nn.functional as F
from golden_files import load, weights
from torch import nn
from torch.testing import assert_close

from robustguide.attacks import PGD, L2Ball, LinfBall, pgd
from robustguide.nets.adm import EncoderUNet
from robustguide.noise import expand, linear_levels, vp_scale

DESCRIPTION, GOLDEN = load("kawar_pgd")
CASES = DESCRIPTION["cases"]
STEP_FRACTIONS = {"2.5*eps/iterations": None, "eps*0.5/3": 0.5 / 3}


@pytest.fixture(scope="module")
def net():
    description, tensors = load("gd_classifier_attention")
    net = EncoderUNet(**description["constructor"])
    net.load_state_dict(weights(tensors))
    return net.eval()


class Chain(nn.Module):
    """Reads the network, which knows x_t and t, in sigma-space; keeps what it was asked."""

    def __init__(self, net):
        super().__init__()
        self.net, self.levels, self.calls = net, linear_levels(), []

    def forward(self, x, sigma):
        logits = self.net(x / expand(vp_scale(sigma), x), self.levels.t(sigma))
        self.calls.append((sigma, logits.detach().argmax(-1)))
        return logits


def assert_adversary(adversary, case, atol):
    want = GOLDEN[f"out.{case['case']}.x_adv"]
    if case["case"].startswith("l2"):
        assert_close(adversary, want, rtol=1e-4, atol=1e-4)
    else:  # the sign of a value near zero may flip
        assert ((adversary - want).abs() > 1e-4).float().mean() <= 0.005
    rested = ~GOLDEN[f"out.{case['case']}.correct_before_iteration"][0].bool()
    assert rested.sum() == case["misclassified_at_start"]
    assert_close(adversary[rested], GOLDEN["in.x"][rested], rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_in_vp_units(case, net):
    x, y, t = GOLDEN["in.x"], GOLDEN["in.y"], GOLDEN["in.t"]
    histories = []

    def losses(moving, rows):
        logits = net(moving, t[rows])
        active = logits.argmax(-1) == y[rows]
        history = torch.zeros(len(x), dtype=torch.bool)
        history[rows] = active
        histories.append(history)
        return F.cross_entropy(logits, y[rows], reduction="none"), active

    ball = L2Ball if case["case"].startswith("l2") else LinfBall
    adversary = pgd(losses, x, ball, case["iterations_allowed"], case["step_size"], case["eps"])
    assert_adversary(adversary, case, atol=0)
    recorded = GOLDEN[f"out.{case['case']}.correct_before_iteration"].bool()
    assert torch.equal(torch.stack(histories)[: len(recorded)], recorded)
    assert not torch.stack(histories)[len(recorded) :].any()
    after = GOLDEN[f"out.{case['case']}.correct_after"].bool()
    with torch.no_grad():
        assert torch.equal(net(adversary, t).argmax(-1) == y, after)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_in_sigma_space(case, net):
    """The same through the change of variables, at sigmas from 0.1 to 100."""
    y, classifier = GOLDEN["in.y"], Chain(net)
    sigma = torch.tensor(classifier.levels.sigmas)[GOLDEN["in.t"]].float()
    scale = expand(vp_scale(sigma), GOLDEN["in.x"])
    x = scale * GOLDEN["in.x"]
    attack = PGD(
        case["eps"],
        case["iterations_allowed"],
        L2Ball if case["case"].startswith("l2") else LinfBall,
        STEP_FRACTIONS[case["step_rule"]],
    )
    adversary = attack(classifier, x, sigma, y)
    assert_adversary(adversary / scale, case, atol=1e-6)
    counts = [len(level) for level, _ in classifier.calls]
    recorded = GOLDEN[f"out.{case['case']}.correct_before_iteration"].bool()
    # A row is asked once more than it moves, to see that it has fallen.
    want = torch.cat([torch.ones(1, len(y), dtype=torch.bool), recorded]).sum(1).tolist()
    assert counts == [n for n in want[: case["iterations_allowed"]] if n]
