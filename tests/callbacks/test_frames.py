"""Frames of sampling: what they hold, that they only look, and parts and processes."""

import pytest
import tiny
import torch
from lightning import LightningModule
from safetensors.torch import load_file

from robustguide import load_classifier, load_denoiser
from robustguide.callbacks import Frames, SampleGrid
from robustguide.callbacks.frames import chosen
from robustguide.data import SeedData
from robustguide.guidance import ClassifierFree, ClassifierGuidance, Guided, Scaled, terms_of
from robustguide.interfaces import to_pixels
from robustguide.modules import Generation
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import Ancestral, Heun

FRAMES = {"x", "denoised", "displacement", "index", "y", "step", "sigma"}


def terms(runs):
    classifier = load_classifier(str(runs / "classifier/classifier.safetensors"))
    return {
        "plain": Scaled(ClassifierGuidance(classifier), scale=2.0),
        "free": Scaled(ClassifierFree(), scale=0.5),
    }


def generation(runs, sampler):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    return Generation(denoiser, sampler, terms(runs), watched_steps=3)


def ancestral(steps="7"):
    return Ancestral(grid=ChainGrid(linear_levels(), steps), clip=1.0)


def sampled(runs, folder, sampler, *callbacks, count=10, first=3):
    module = generation(runs, sampler)
    data = SeedData(count=count, num_classes=10, batch_size=4, first=first)
    tiny.trainer(folder, *callbacks).test(module, datamodule=data, verbose=False)
    return module


@pytest.mark.parametrize("sampler", [ancestral(), Heun(RhoGrid(7, 0.05, 20.0), clip=1.0)])
def test_frames_are_what_the_guided_denoiser_says_at_the_states(runs, tmp_path, sampler):
    module = sampled(runs, tmp_path, sampler, Frames(count=6, steps=4))
    found = load_file(tmp_path / "frames.safetensors")
    assert found.keys() == FRAMES
    assert found["index"].tolist() == [3, 4, 5, 6, 7, 8] == found["y"].tolist()
    assert found["step"].tolist() == [0, 2, 4, 6]
    assert found["x"].shape == found["displacement"].shape == (6, 4, 1, 8, 8)
    levels = module.sampler.levels(module.denoiser)
    assert found["sigma"].tolist() == [levels[step] for step in (0, 2, 4, 6)]
    # the second state, seen again: the displacement is the sum of both terms', unclipped
    sigma = found["sigma"][1]
    x = found["x"][:, 1].float() * (1 + sigma.float() ** 2).sqrt()
    guided = Guided(module.denoiser, terms_of(module.guidance), 1.0)
    with torch.no_grad():
        prediction, score = guided.split(x, sigma.float().expand(6), found["y"])
    expected, given = sum(guided.moves), found["displacement"][:, 1]
    assert score.abs().max() > 0.01  # guidance does something
    assert (given - expected).abs().max() < 0.01 * expected.abs().max()  # of the rounded state
    moved = prediction.denoised + (score if isinstance(sampler, Heun) else 0)
    gap = (found["denoised"][:, 1].int() - to_pixels(moved).int()).abs()
    assert gap.max() <= 2


def test_the_images_are_the_same_without_frames(runs, tmp_path):
    for name, callbacks in (("with", [Frames(3, 5)]), ("without", [])):
        module = sampled(runs, tmp_path / name, ancestral(), SampleGrid(), *callbacks)
        assert module.watchers == []
    first, second = (load_file(tmp_path / n / "samples.safetensors") for n in ("with", "without"))
    assert torch.equal(first["pixels"], second["pixels"])
    assert first["index"].tolist() == list(range(3, 13))
    assert second["y"].tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert (tmp_path / "with/test_frames.png").is_file()
    assert not (tmp_path / "without/frames.safetensors").exists()


def test_without_guidance_nothing_is_displaced(runs, tmp_path):
    denoiser = load_denoiser(str(runs / "denoiser/denoiser.safetensors"))
    module, data = Generation(denoiser, ancestral()), SeedData(count=2, num_classes=10)
    trainer = tiny.trainer(tmp_path, Frames())
    trainer.test(module, datamodule=data, verbose=False)
    found = load_file(tmp_path / "frames.safetensors")
    assert found["displacement"].abs().max() == 0 and len(found["index"]) == 2


def test_parts_together_have_the_frames_of_one_run(runs, tmp_path):
    callbacks = [tiny.spec("callbacks.Frames", count=3, steps=3)]
    path = runs / "classifier/classifier.safetensors"
    config = tiny.generation(
        runs / "denoiser/denoiser.safetensors",
        count=8,
        callbacks=callbacks,
        sampler=tiny.ancestral(5),
        guidance={"plain": tiny.guided(path)},
    )
    tiny.run(tmp_path / "whole", "test", config)
    part = {"trainer": {"callbacks": [*callbacks, tiny.spec("callbacks.PartWriter")]}}
    for first in (0, 2):
        words = (f"--data.first={first}", f"--data.count={2 if first == 0 else 6}")
        folder = tmp_path / f"parts/{first}"
        tiny.run(folder, "test", tiny.merged(config, part), *words)
        folder.with_suffix(".yaml").unlink()
    tiny.run(tmp_path / "merged", "test", config, f"--data.parts={tmp_path / 'parts'}")
    whole, merged = (load_file(tmp_path / n / "frames.safetensors") for n in ("whole", "merged"))
    assert whole.keys() == merged.keys() == FRAMES
    for name in ("index", "y", "step", "sigma"):
        assert torch.equal(whole[name], merged[name]), name
    gap = (whole["denoised"].int() - merged["denoised"].int()).abs()
    assert gap.max() <= 1  # batches round differently
    torch.testing.assert_close(whole["displacement"], merged["displacement"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("count", "wanted", "steps"),
    [(50, 6, [0, 10, 20, 29, 39, 49]), (3, 6, [0, 1, 2]), (1, 2, [0])],
)
def test_steps_are_spread_over_the_run(count, wanted, steps):
    assert chosen(count, wanted) == steps


def test_what_makes_no_sense_is_refused(runs, tmp_path):
    for given in ({"count": 0}, {"steps": 1}):
        with pytest.raises(ValueError, match="at least 1 image at 2 steps"):
            Frames(**given)
    with pytest.raises(ValueError, match=r"LightningModule has none.*Generation"):
        Frames().setup(tiny.trainer(tmp_path), LightningModule(), "test")


def test_two_of_them_are_refused(runs, tmp_path):
    with pytest.raises(
        ValueError, match=r"more than one Frames, .* one frames\.safetensors; keep"
    ):
        sampled(runs, tmp_path, ancestral(), Frames(2), Frames(3), count=2)
    assert not (tmp_path / "frames.safetensors").exists()
