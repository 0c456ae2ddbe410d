"""Rows that leave the batch, against the published loop in which all rows take every step."""

import published
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustguide.attacks import PGD, balls
from robustguide.nets import EncoderUNet
from robustguide.noise import expand, linear_levels, vp_scale

RADIUS = 0.6  # by which rows fall one after another


class Centred(nn.Module):
    """A random network whose answers differ from image to image."""

    def __init__(self, net, x_t, t):
        super().__init__()
        self.net = net
        with torch.no_grad():
            self.mean = net(x_t, t).mean(0)

    def forward(self, x_t, t):
        return self.net(x_t, t) - self.mean


class InSigmaSpace(nn.Module):
    """Reads a network of x_t and t in sigma-space, and keeps which rows it was asked of."""

    def __init__(self, net, x, levels):
        super().__init__()
        self.net, self.x, self.levels, self.asked = net, x, levels, []

    def forward(self, x, sigma):
        rows = (sigma[:, None] == self.x[1]).float().argmax(1)
        self.asked.append(rows.tolist())
        return self.net(x / expand(vp_scale(sigma), x), self.levels.t(sigma))


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_rows_are_attacked_and_end_at_the_same_points(seed, steps, monkeypatch):
    # what is added to a norm weighs more on their gradients, which are those of the batch's mean
    monkeypatch.setattr(published, "FLOOR", 0)
    monkeypatch.setattr(balls, "NORM_FLOOR", 0)
    torch.manual_seed(seed)
    net = EncoderUNet(16, 3, 16, 4, 1, [2], channel_mult=(1, 2), pool="attention").double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    levels, count = linear_levels(), 24
    t = torch.randperm(1000)[:count].double()  # all differ, so a level names its row
    x_t = torch.randn(count, 3, 16, 16, dtype=torch.float64)
    net = Centred(published.as_published(net), x_t, t)
    with torch.no_grad():
        y = net(x_t, t).argmax(1)
    y[::4] = (y[::4] + 1) % 4  # wrong before any step
    want, history = published.attacked(net, x_t, y, t, radius=RADIUS, steps=steps)
    assert steps == 1 or 0 < history[-1].sum() < history[0].sum() == 18

    sigma = torch.from_numpy(levels.sigmas)[t.long()]
    reader = InSigmaSpace(net, (x_t, sigma), levels)
    scale = expand(vp_scale(sigma), x_t)
    adversary = PGD(RADIUS, steps)(reader, x_t * scale, sigma, y) / scale
    assert_close(adversary, want, rtol=0, atol=1e-12)
    # those that were right before a step are looked at again after it, if another step follows
    moved = [right.nonzero()[:, 0].tolist() for right in history[: steps - 1] if right.any()]
    assert reader.asked == [list(range(count)), *moved]
