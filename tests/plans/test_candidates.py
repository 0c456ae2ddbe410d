"""Which classifier looks where, read from the terms of guidance."""

import json
import math

import pytest
import tiny

from robustguide.checkpoints import build, export
from robustguide.plans import candidates
from robustguide.plans.candidates import Candidate, Look, Scope, looks_in

NET = {"class_path": "robustguide.classifiers.Timed"}
OTHER = {"class_path": "robustguide.classifiers.OffTheShelf"}
STATE = {"class_path": "robustguide.guidance.AtState"}
DENOISED = {"class_path": "robustguide.guidance.AtDenoised"}
TEMPERED = {"class_path": "robustguide.guidance.Tempered", "init_args": {"joint": 2.0}}


def term(kind, **arguments):
    return tiny.spec(f"guidance.{kind}", **arguments)


def looked(**terms):
    return list(looks_in(terms, Scope(clip=1.0)))


def test_a_term_inside_others():
    inner = term("ClassifierGuidance", classifier=NET, view=DENOISED, objective=TEMPERED)
    outer = term("Scaled", scale=3.0, term=term("EveryKth", every=2, term=inner))
    assert looked(a=outer, b=term("ClassifierFree")) == [Look(NET, DENOISED, TEMPERED, None, 1.0)]
    plain = term("ClassifierGuidance", classifier=NET, labels=[1, 0])
    assert looked(a=plain) == [Look(NET, STATE, None, (1, 0), 1.0)]
    assert looked(a=term("Averaged", std=0.1, count=4, term=plain))[0].evaluations == 4
    matched = term("Matched", term=plain, to=term("ClassifierFree"))
    assert looked(a=matched)[0].clip is None


def test_classifiers_that_only_answer_are_left_out():
    confused = term("Confused", classifier=NET)
    assert looked(a=term("FullSum", classifier=NET), b=term("GradientFree", labels=confused)) == []


@pytest.mark.parametrize(("forward", "view"), [(2.0, "ThroughDenoiser"), (0.0, "AtDenoised")])
def test_universal_guidance_by_a_classifier(forward, view):
    loss = term("ClassifierLoss", classifier=NET)
    found = looked(a=term("Universal", loss=loss, forward=forward))
    assert found == [Look(NET, {"class_path": f"robustguide.guidance.{view}"}, clip=None)]
    other = term("SquaredDistance", target=[0.0])
    assert looked(a=term("Universal", loss=other, forward=1.0)) == []


def test_levels_divided_between_classifiers():
    above = term("ClassifierGuidance", classifier=NET, view=DENOISED)
    below = term("ClassifierGuidance", classifier=OTHER)
    switched = term("Switched", above=above, below=below, sigma=0.5)
    within = [
        term("Within", term=above, sigma_min=0.5, sigma_max="inf"),
        term("Within", term=below, sigma_max=0.5),
    ]
    for looks in (looked(a=switched), looked(a=within[0], b=within[1])):
        found = Candidate("both", tuple(looks))
        assert [found.at(sigma).classifier for sigma in (0.6, 1e9)] == [NET, NET]
        assert [found.at(sigma).classifier for sigma in (0.5, 0.01)] == [OTHER, OTHER]
        assert found.looks[0].upto == math.inf and found.needs_denoiser()
    one = Candidate("one", tuple(looked(a=within[1])))
    assert one.at(10.0).classifier == OTHER and not one.needs_denoiser()  # alone, it is measured
    two = Candidate("two", tuple(looked(a=above, b=below)))
    with pytest.raises(ValueError, match=r"two: 2 classifiers guide at sigma 0\.1"):
        two.at(0.1)


def test_a_setting_is_its_files_and_not_their_names(tmp_path):
    described = tiny.classifier()
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for path in paths:
        export(
            build(described),
            path,
            described,
            class_names=list("0123456789"),
            shape=[1, 8, 8],
            weights="raw",
        )
    loads = [tiny.loaded("classifier", path) for path in paths]
    loads.append(tiny.spec("checkpoints.load_classifier", path=paths[0], card=None, device="cpu"))
    settings = [Candidate(str(i), (Look(load, STATE),)).setting() for i, load in enumerate(loads)]
    assert settings[0] != settings[1]  # other weights
    assert settings[0] == settings[2]
    denoiser = {"class_path": "robustguide.denoisers.EpsDenoiser"}
    assert Candidate("x", (Look(loads[0], STATE),), denoiser).setting() == settings[0]
    assert Candidate("x", (Look(loads[0], DENOISED),), denoiser).setting() != settings[0]
    json.dumps(settings, allow_nan=False)


def test_a_view_of_the_denoised_image_needs_a_denoiser():
    with pytest.raises(ValueError, match=r"AtDenoised looks at .* give one, such as --denoiser"):
        candidates.of_checkpoint("a.safetensors", None, "a", DENOISED, None, 1.0)


def test_folders_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        candidates.of_runs([tmp_path / "nowhere"])
    (tmp_path / "results.json").write_text('{"run": {"stage": "fit", "config": {}}}')
    with pytest.raises(ValueError, match=r"No run that sampled .* `robustguide ablate"):
        candidates.of_runs([tmp_path])
    mine = {"stage": "test", "config": {"model": {"class_path": "my_absent_package.Generation"}}}
    (tmp_path / "results.json").write_text(json.dumps({"run": mine}))
    with pytest.raises(ValueError, match="No run that sampled"):
        candidates.of_runs([tmp_path])
