import json
import math

import pytest
import tiny
import torch
import yaml
from oracles import ExactClassifier, ExactDenoiser, Mixture
from torch import nn
from torch.nn import functional as F

from robustguide import load_classifier
from robustguide.classifiers import Smooth
from robustguide.data import Digits, Images, SeedData
from robustguide.denoisers import Unconditional
from robustguide.guidance import AtDenoised, AtState, Scaled, Tempered, ThroughDenoiser
from robustguide.interfaces import Classifier
from robustguide.metrics import Answers
from robustguide.modules import KnobSearch, knobs
from robustguide.modules.knob_trials import (
    Knobs,
    all_combinations,
    most_tried,
    one_at_a_time,
    replay,
)
from robustguide.noise import ChainGrid, RhoGrid, linear_levels
from robustguide.samplers import DDIM, Ancestral, Heun, Sine

FIRST = 1_000_000


def clusters():
    """Three round classes of equal weight in the plane, which overlap a little."""
    means = torch.tensor([[-1.5, -1.0], [1.5, -1.0], [0.0, 1.5]]).reshape(3, 1, 1, 2)
    return Mixture(means, torch.eye(2).expand(3, 2, 2) * 0.5)


class Multiplied(Classifier):
    """Logits of a mixture times a planted factor."""

    def __init__(self, mixture, factor):
        super().__init__()
        self.exact = ExactClassifier(mixture)
        self.num_classes, self.shape = len(mixture), mixture.shape
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x, sigma):
        return self.exact(x, sigma) * self.factor


class Rectified(Multiplied):
    """Right with Softplus(3), whose value at 0 is log(2) / 3; too sure below, and not above."""

    def forward(self, x, sigma):
        rectified = 0.1 + F.relu(torch.zeros_like(sigma))
        return super().forward(x, sigma) * (rectified / (0.1 + math.log(2) / 3))[:, None]


def ancestral(steps=12):
    return Ancestral(ChainGrid(linear_levels(), str(steps)), state_dtype="float64")


def search(classifier, mixture=None, told=True, **arguments):
    """With a denoiser that is told the label, so that guidance need not do anything, or not."""
    exact = ExactDenoiser(mixture or clusters())
    denoiser = exact if told else Unconditional(exact)
    given = {
        "sampler": ancestral(),
        "view": AtState(),
        "watched_steps": 6,
        "scale": 1e-9 if told else 1.0,
    }
    return KnobSearch(denoiser, classifier=classifier, **given | arguments)


def numbers(count=240, batch_size=240, **arguments):
    return SeedData(count, 3, first=FIRST, batch_size=batch_size, **arguments)


def fitted(module, folder, data=None, **arguments):
    settings = {"max_epochs": -1, "max_steps": -1, "log_every_n_steps": 1}
    trainer = tiny.trainer(folder, **settings | arguments)
    with pytest.MonkeyPatch.context() as patch:
        # these take longer than all the rest, and are tested elsewhere
        patch.setattr(knobs, "draw", lambda *_: None)
        patch.setattr(Answers, "integral_interval", lambda self: (0.0, 1.0))
        trainer.fit(module, datamodule=data or numbers())
    return module


def trials(folder):
    return json.loads((folder / "knobs.json").read_text())["trials"]


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_planted_temperature_is_found(factor, tmp_path):
    """The answers are exact at 1 / factor, and shown to be calibrated there."""
    values = [1.0, 2 / factor, 1 / factor, 0.5 / factor]
    module = fitted(search(Multiplied(clusters(), factor), joints=values), tmp_path)
    assert module.chosen.knobs == Knobs(joint=1 / factor)
    assert module.chosen.integral_ece < module.chosen.if_calibrated[1]
    others = [trial for trial in module.tried if trial is not module.chosen]
    assert len(others) == 3
    assert all(trial.integral_ece > trial.if_calibrated[1] for trial in others)


def test_a_planted_beta_is_found(tmp_path):
    betas = [math.inf, 8.0, 3.0, 1.0]
    module = fitted(search(Rectified(clusters(), 1.0), betas=betas), tmp_path)
    assert module.chosen.knobs == Knobs(beta=3.0)
    assert type(module.classifier) is Smooth and module.classifier.beta == 3
    assert module.chosen.integral_ece < module.chosen.if_calibrated[1]


def test_a_schedule_that_only_harms_is_left_out(tmp_path):
    """Labels are told, so that any guidance is too much; 1e9 makes up for the tiny scale."""
    module = search(Multiplied(clusters(), 1.0), strengths=[1e9, 3e8, 0.0])
    chosen = fitted(module, tmp_path).chosen
    assert chosen.knobs == Knobs(strength=0.0)
    agreement = [trial.agreement for trial in module.tried]
    assert agreement[0] > agreement[1] > agreement[2]


def test_what_the_yardstick_cannot_see(tmp_path):
    """Samples that guidance alone makes follow p(x) softmax(tau f)_y: calibrated for every tau.

    Only where the two temperatures differ, eq. 4 is no posterior, and no tau_1 mends it.
    """
    values, sampler = [1.0, 0.25, 4.0], DDIM(ChainGrid(linear_levels(), "16"))
    module = search(
        Multiplied(clusters(), 4.0),
        told=False,
        sampler=sampler,
        joints=values,
        marginals=values,
        search="grid",
    )
    fitted(module, tmp_path)
    equal = {t.knobs.joint: t for t in module.tried if t.knobs.joint == t.knobs.marginal}
    others = [t.integral_ece for t in module.tried if t.knobs.joint != t.knobs.marginal]
    assert (len(equal), len(others)) == (3, 6)
    assert max(t.integral_ece for t in equal.values()) < 0.04 < 0.1 < min(others)
    assert equal[0.25].agreement < equal[1.0].agreement < equal[4.0].agreement


def errors_of(choices, values, rounds):
    """Settings in the order in which a search tries them, with errors from a table."""
    errors, asked = {}, []
    while (pending := replay(one_at_a_time(choices, rounds), errors).pending) is not None:
        errors[pending] = values(pending)
        asked.append(pending)
    return asked, errors


def test_one_at_a_time():
    """Two knobs that depend on one another: the first is right only once the second is."""
    choices = {"joint": [1.0, 2.0, 3.0], "marginal": [1.0, 2.0]}
    best = {1.0: 1.0, 2.0: 3.0}  # joint by marginal

    def error(knobs):
        return abs(knobs.joint - best[knobs.marginal]) + 3 * abs(knobs.marginal - 2)

    asked, errors = errors_of(choices, error, rounds=5)
    first = [(1, 1), (2, 1), (3, 1)]  # the first knob, which stays where it is
    assert [(k.joint, k.marginal) for k in asked] == [*first, (1, 2), (2, 2), (3, 2)]
    assert min(errors, key=errors.get) == Knobs(joint=3.0, marginal=2.0)
    once, _ = errors_of(choices, error, rounds=1)
    assert once == asked[:4]
    assert most_tried(choices, 1) == 4 and most_tried(choices, 5) == most_tried(choices) == 6
    constant, _ = errors_of(choices, lambda knobs: 0.5, rounds=5)
    assert len(constant) == 4  # of equal ones the first, and the second round changes nothing


def test_all_combinations():
    choices = {"beta": [math.inf, 3.0], "strength": [0.0, 0.1, 0.2]}
    asked = list(all_combinations(choices))
    assert len(asked) == most_tried(choices) == 6 and asked[0] == Knobs(strength=0.0)
    assert asked[-1] == Knobs(beta=3.0, strength=0.2) and len(set(asked)) == 6
    tried, pending = replay(all_combinations(choices), dict.fromkeys(asked[:4], 0.0))
    assert (tried, pending) == (asked[:4], asked[4])


class Stopped(RuntimeError):
    pass


class Stopping(ExactDenoiser):
    """Fails after a number of evaluations."""

    def __init__(self, mixture, after):
        super().__init__(mixture)
        self.after = after

    def predict(self, x, sigma, y):
        if len(self.calls) >= self.after:
            raise Stopped
        return super().predict(x, sigma, y)


JOINTS = [1.0, 0.5, 0.25, 0.125]


def counting(after=10**9, joints=JOINTS, factor=4.0):
    """A search of 3 steps a setting, in two batches of 12 numbers: 6 evaluations each."""
    classifier, denoiser = Multiplied(clusters(), factor), Stopping(clusters(), after)
    given = {"sampler": ancestral(3), "view": AtState(), "watched_steps": 3}
    return KnobSearch(denoiser, classifier=classifier, joints=joints, **given)


def test_a_repeated_run_goes_on(tmp_path):
    data = numbers(24, 12)
    whole = fitted(counting(), tmp_path / "whole", data)
    assert len(whole.denoiser.calls) == 24
    with pytest.raises(Stopped):
        fitted(counting(after=15), tmp_path / "run", data)
    lines = (tmp_path / "run/knobs.jsonl").read_text().splitlines()
    assert len(lines) == 2 and not (tmp_path / "run/knobs.json").exists()
    second = fitted(counting(), tmp_path / "run", data)
    assert len(second.denoiser.calls) == 12
    assert trials(tmp_path / "run") == trials(tmp_path / "whole")
    third = fitted(counting(), tmp_path / "run", data)  # has nothing left to do
    assert third.denoiser.calls == [] and third.evaluated.images == 0
    assert third.chosen == whole.chosen and third.classifier is not None
    longer = fitted(counting(joints=[*JOINTS, 0.3]), tmp_path / "run", data)
    assert len(longer.denoiser.calls) == 6 and len(longer.tried) == 5


def test_trials_of_something_else_are_not_taken(tmp_path):
    data = numbers(24, 12)
    fitted(counting(), tmp_path, data)
    other = fitted(counting(factor=2.0), tmp_path, data)
    assert len(other.denoiser.calls) == 24
    later = fitted(counting(), tmp_path, SeedData(24, 3, first=FIRST + 24, batch_size=12))
    assert len(later.denoiser.calls) == 24
    assert fitted(counting(), tmp_path, data).denoiser.calls == []
    lines = (tmp_path / "knobs.jsonl").read_text().splitlines()
    made_from = [json.loads(line)["made_from"] for line in lines]
    assert len(made_from) == 12 and len(set(made_from)) == 3


def test_a_trainer_that_stops_early_leaves_the_best_so_far(tmp_path):
    data = numbers(24, 12)
    module = fitted(counting(), tmp_path, data, max_epochs=3)
    found = json.loads((tmp_path / "knobs.json").read_text())
    assert (found["finished"], len(found["trials"])) == (False, 3)
    assert module.chosen.error == min(trial.error for trial in module.tried)
    assert found["seeds"] == {"first": FIRST, "count": 24}
    fitted(counting(), tmp_path, data, max_epochs=3)
    assert json.loads((tmp_path / "knobs.json").read_text())["finished"]
    with pytest.raises(ValueError, match="No setting was tried on all numbers"):
        fitted(counting(), tmp_path / "part", data, limit_train_batches=1)


def test_the_batch_size_changes_no_number(tmp_path):
    runs = []
    for size in (24, 7):
        fitted(counting(), tmp_path / str(size), numbers(24, size))
        runs.append(tiny_numbers(trials(tmp_path / str(size))))
    assert runs[0].keys() == runs[1].keys()
    assert runs[0] == pytest.approx(runs[1], rel=1e-9, abs=1e-12)


def tiny_numbers(value, where=""):
    """All leaves of a document by their place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, p in items for k, v in tiny_numbers(p, f"{where}/{key}").items()}
    return {where: value} if isinstance(value, int | float) else {}


class Unopened(Digits):
    def split(self, name):
        raise AssertionError("a search looked at images")


@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader")
def test_no_image_is_read(tmp_path):
    data = SeedData(40, 10, first=FIRST, batch_size=40, reference=Unopened())
    classes = torch.randn(10, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    mixture = Mixture(classes)
    module = search(Multiplied(mixture, 1.0), mixture, sampler=ancestral(3), watched_steps=2)
    assert fitted(module, tmp_path, data).chosen.n == 40
    with pytest.raises(ValueError, match="SeedData in place of Images"):
        fitted(search(Multiplied(mixture, 1.0), mixture), tmp_path, Images())
    with pytest.raises(ValueError, match=r"labels of 3 classes, the classifier knows 10"):
        fitted(search(Multiplied(mixture, 1.0), mixture), tmp_path)


@pytest.mark.parametrize("view", [AtState(), AtDenoised(), ThroughDenoiser()])
def test_the_answers_are_those_to_what_guides(view):
    """At each watched step the classifier is asked for what it is differentiated at."""
    sampler = Heun(RhoGrid(4, 0.01, 10.0))
    module = search(
        Multiplied(clusters(), 2.0), sampler=sampler, view=view, joints=[0.5], watched_steps=4
    )
    module.pending = module.start
    module.setting = module.guided_by(module.start)
    asked = []
    ask, said = module.classifier.forward, []

    def heard(x, sigma):
        logits = ask(x, sigma)
        (asked if logits.requires_grad else said).append(logits.detach())
        return logits

    module.classifier.forward = heard
    logits = module.sampled((torch.tensor([0, 5]), torch.tensor([0, 2])))
    guided = asked[::2] if len(asked) == 7 else asked  # not the second halves of Heun's steps
    assert len(said) == 4 and len(guided) == 4
    torch.testing.assert_close(
        logits.double(), 0.5 * torch.stack(guided).double(), atol=1e-5, rtol=1e-5
    )


def test_a_setting_becomes_sampler_objective_and_classifier():
    module = search(Rectified(clusters(), 1.0), betas=[3.0], strengths=[0.3], marginals=[0.5])
    sampler, recorded = module.guided_by(module.start)
    assert sampler.guidance_variance == Sine(0.3) and sampler.grid == module.sampler.grid
    assert recorded.objective == Tempered(1.0, 0.5) and recorded.classifier.beta == 3
    (term,) = module.terms(recorded).values()
    assert type(term) is Scaled and term.scales == (1e-9,)
    plain = search(Rectified(clusters(), 1.0))
    sampler, recorded = plain.guided_by(plain.start)
    assert sampler is plain.sampler and recorded.classifier is plain.classifier


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"betas": []}, r"betas lists each value to try once, and one at least; got \[\]"),
        ({"joints": [1.0, 1.0]}, "joints lists each value to try once"),
        ({"joints": [0.0]}, "joint must be positive"),
        ({"marginals": [1.0, -0.5]}, "marginal at least 0"),
        ({"betas": [-1.0]}, "beta must be positive"),
        ({"strengths": [0.1, math.inf]}, "gamma must be a finite number"),
        ({"scale": 0.0}, "scale must be a positive number"),
        ({"rounds": 0}, "rounds counts turns"),
        ({"watched_steps": 0}, "watched_steps must be at least 1"),
        ({"sampler": Heun(RhoGrid()), "strengths": [0.0]}, "which a Heun has not"),
    ],
)
def test_a_search_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(Rectified(clusters(), 1.0), **arguments)


class Lost(Multiplied):
    """Has no number for a joint temperature of 1, by which the state is driven away."""

    def forward(self, x, sigma):
        return (
            super().forward(x, sigma)
            * torch.where(x.abs() > 1e3, math.nan, 1.0).amax((1, 2, 3))[:, None]
        )


def test_where_sampling_breaks_down_the_setting_is_not_chosen(tmp_path):
    module = search(
        Lost(clusters(), 1.0), told=False, scale=1e6, joints=[1.0, 1e-9], marginals=[0.0]
    )
    fitted(module, tmp_path)
    assert math.isnan(module.tried[0].integral_ece) and module.chosen.knobs.joint == 1e-9
    again = fitted(
        search(Lost(clusters(), 1.0), told=False, scale=1e6, joints=[1.0, 1e-9], marginals=[0.0]),
        tmp_path,
    )
    assert again.chosen == module.chosen and again.denoiser.denoiser.calls == []
    with pytest.raises(ValueError, match="broke down with each of 1 settings; lower the scale"):
        fitted(search(Lost(clusters(), 1.0), told=False, scale=1e6), tmp_path)


SHELF = tiny.spec(
    "classifiers.OffTheShelf",
    net=tiny.mlp(num_logits=10, activation="relu"),
    num_classes=10,
    mean=[0.5],
    std=[0.5],
)


def by_command(runs, **init_args):
    """A search from files, with an untrained classifier that has ReLUs."""
    arguments = {
        "denoiser": tiny.loaded("denoiser", runs / "denoiser/denoiser.safetensors"),
        "sampler": tiny.ancestral(5),
        "classifier": SHELF,
        "betas": [3.0, 1.0],
        "joints": [1.0],
        "marginals": [0.5],
        "strengths": [0.2, 0.0],
        "watched_steps": 3,
    }
    return {
        "seed_everything": 0,
        "model": tiny.spec("modules.KnobSearch", **arguments | init_args),
        "data": tiny.spec("data.SeedData", count=21, num_classes=10, first=FIRST, batch_size=8),
        "trainer": tiny.TRAINER | {"max_epochs": -1, "enable_checkpointing": False},
    }


def test_the_files_of_a_search_guide(runs, tmp_path, json_of, capsys):
    """`fit` leaves a classifier and an overlay, which `test` takes beside any sampling."""
    folder = tmp_path / "search"
    tiny.run(folder, "fit", by_command(runs))
    assert "integral ECE" in capsys.readouterr().out
    found, results = json.loads((folder / "knobs.json").read_text()), json_of(folder)
    chosen = found["chosen"]["knobs"]
    assert results["metrics"]["integral_ece"]["value"] == found["chosen"]["integral_ece"]
    assert results["metrics"]["integral_ece"]["n"] == 21
    assert len(results["curves"]["knobs_chosen"]["ece"]) == 3
    assert results["cost"]["denoiser_evaluations"] == 5  # rows an image
    classifier = load_classifier(str(folder / "classifier.safetensors"))
    assert type(classifier) is Smooth and classifier.beta == chosen["beta"]
    assert classifier.metadata.extra["knobs"] == chosen
    assert classifier.metadata.shape == (1, 8, 8)
    assert (folder / "knobs.png").stat().st_size > 5000
    sampling = tmp_path / "sampling.yaml"
    config = tiny.generation(runs / "denoiser/denoiser.safetensors", count=4)
    sampling.write_text(yaml.safe_dump(config))
    root = f"--trainer.default_root_dir={tmp_path / 'guided'}"
    cli = tiny.main(
        ["test", "--config", str(sampling), "--config", str(folder / "guidance.yaml"), root]
    )
    assert cli.trainer.state.finished
    made = yaml.safe_load((tmp_path / "guided/config.yaml").read_text())["model"]["init_args"]
    assert made["sampler"]["init_args"]["guidance_variance"]["init_args"] == {
        "gamma": chosen["strength"]
    }
    assert made["sampler"]["init_args"]["grid"]["init_args"]["spacing"] == "10"
    term = made["guidance"]["elucd"]["init_args"]["term"]["init_args"]
    assert term["objective"]["init_args"] == {"joint": 1.0, "marginal": 0.5}
    assert term["view"]["class_path"] == "robustguide.guidance.AtDenoised"
    assert json_of(tmp_path / "guided")["cost"]["classifier_backward"] == 10


def test_without_softplus_the_classifier_is_exported_as_it_is(runs, tmp_path):
    arguments = {"betas": [math.inf], "strengths": None, "sampler": tiny.ancestral(3)}
    tiny.run(tmp_path / "search", "fit", by_command(runs, **arguments))
    classifier = load_classifier(str(tmp_path / "search/classifier.safetensors"))
    assert type(classifier).__name__ == "OffTheShelf"
    overlay = yaml.safe_load((tmp_path / "search/guidance.yaml").read_text())
    assert list(overlay["model"]["init_args"]) == ["guidance"]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_two_processes_find_what_one_does(runs, tmp_path):
    """In batches of one, so that each image is computed in the same way."""
    config = by_command(runs, betas=[3.0], sampler=tiny.ancestral(3))
    config = tiny.merged(config, {"data": {"init_args": {"count": 6, "batch_size": 1}}})
    tiny.run(tmp_path / "one", "fit", config)
    two = {"trainer": {"devices": 2, "strategy": "ddp_fork"}}
    tiny.run(tmp_path / "two", "fit", tiny.merged(config, two))
    assert trials(tmp_path / "two") == trials(tmp_path / "one")
    assert len(trials(tmp_path / "one")) == 2
