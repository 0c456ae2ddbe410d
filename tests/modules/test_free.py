"""Free adversarial training, step by step."""

import pytest
import tiny
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from robustguide.attacks import PGD
from robustguide.checkpoints import build
from robustguide.data import Images
from robustguide.modules import FreeClassification
from robustguide.noise import LogNormal, expand, vp_scale
from robustguide.samplers.seeds import mixed

RADIUS = 0.7


def classifier():
    """The same weights each time."""
    torch.manual_seed(0)
    return build(tiny.classifier())


def trained(path, steps=6, **arguments):
    """A module after some steps of gradient descent, and what it asked of its classifier."""
    net, calls = classifier(), []
    net.register_forward_hook(lambda module, inputs, output: calls.append(inputs))
    noise = LogNormal(-1.0, 0.5)
    module = FreeClassification(
        net,
        radius=RADIUS,
        noise=noise,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
        seed=7,
        **arguments,
    )
    trainer = tiny.trainer(path, max_steps=steps)
    trainer.fit(module, datamodule=Images(batch_size=16))
    return module, calls[1:], trainer  # the first one tries a blank image


def test_every_pass_moves_the_weights_and_the_images(tmp_path):
    """Alg. 1 of Shafahi et al. (2019), written out for two batches of three passes."""
    module, calls, trainer = trained(tmp_path, replays=3, step_fraction=0.5)
    assert trainer.global_step == len(calls) == 6
    net = classifier()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    offset = torch.zeros(16, 1, 8, 8)
    batches = iter(Images(batch_size=16).train_dataloader())
    for batch in range(2):
        x_0, y, _ = next(batches)
        torch.manual_seed(mixed(7, batch, 0))
        sigma = LogNormal(-1.0, 0.5).sample(16, "cpu")
        x = x_0 + expand(sigma, x_0) * torch.randn(16, 1, 8, 8)
        for _ in range(3):
            offset.requires_grad_()
            moved = x + expand(vp_scale(sigma), x) * offset
            assert_close(calls.pop(0)[0], moved.detach(), rtol=1e-5, atol=1e-5)
            optimizer.zero_grad()
            F.cross_entropy(net(moved, sigma), y).backward()
            optimizer.step()
            length = offset.grad.flatten(1).norm(dim=1)
            offset = offset.detach() + 0.5 * RADIUS * offset.grad / expand(length, x)
            length = offset.flatten(1).norm(dim=1).clamp_min(RADIUS)
            offset = offset * expand(RADIUS / length, x)
    for made, want in zip(module.classifier.parameters(), net.parameters(), strict=True):
        assert_close(made, want, rtol=1e-5, atol=1e-6)
    assert_close(module.offset, offset, rtol=1e-4, atol=1e-5)


def test_a_stopped_run_goes_on_with_its_offset(tmp_path):
    module, _, trainer = trained(tmp_path / "whole", replays=2, steps=8)
    _, _, half = trained(tmp_path / "half", replays=2, steps=4)
    half.save_checkpoint(tmp_path / "half.ckpt")
    again = FreeClassification(
        build(tiny.classifier()),
        radius=RADIUS,
        replays=2,
        noise=LogNormal(-1.0, 0.5),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
        seed=7,
    )
    resumed = tiny.trainer(tmp_path / "again", max_steps=8)
    resumed.fit(again, datamodule=Images(batch_size=16), ckpt_path=tmp_path / "half.ckpt")
    assert resumed.global_step == trainer.global_step == 8
    for made, want in zip(again.parameters(), module.parameters(), strict=True):
        assert torch.equal(made, want)


def test_the_threat_model_is_stated():
    module = FreeClassification(classifier(), radius=0.5, replays=3, step_fraction=0.25)
    assert module.threat == (
        "free, 3 passes a batch, L2, radius 0.5 in x_t units on the [-1,1] scale, step 0.125"
    )


def test_a_smaller_batch_takes_the_first_offsets():
    module = FreeClassification(build(tiny.classifier()), noise=LogNormal())
    module.offset = torch.randn(4, 1, 8, 8)
    assert torch.equal(module.carried(torch.zeros(3, 1, 8, 8)), module.offset[:3])
    longer = module.carried(torch.zeros(6, 1, 8, 8))
    assert torch.equal(longer[:4], module.offset) and longer[4:].abs().sum() == 0
    assert module.carried(torch.zeros(4, 1, 4, 4)).abs().sum() == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(replays=0), "replays=0"),
        (dict(radius=0.0), "radius=0.0"),
        (dict(step_fraction=-1.0), "step_fraction=-1.0"),
        (dict(attack=PGD(0.5)), "leave attack, warm_start"),
    ],
)
def test_what_makes_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        FreeClassification(build(tiny.classifier()), **given)
