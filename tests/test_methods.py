"""Every method of configs/ablation and docs/guidance.md: from its file to its cost, in tiny."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from tiny import classifier, denoiser, mlp, spec

from robustguide.__main__ import main
from robustguide.checkpoints import build, export
from robustguide.guidance import ClassifierFree, Guidance, Within

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.stem for path in ROOT.glob("configs/ablation/*.yaml"))
PAGE = (ROOT / "docs" / "guidance.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CLEAN = spec(
    "classifiers.OffTheShelf",
    net=mlp(num_logits=10, activation="relu"),
    num_classes=10,
    mean=[0.5],
    std=[0.5],
)
STEPS = 4
KEYS = (
    "denoiser_evaluations",
    "reference_evaluations",
    "denoiser_backward",
    "classifier_forward",
    "classifier_backward",
)
GRADIENT = (1, 0, 0, 1, 1)  # rows an image and step: the denoiser, and a classifier's gradient
EXPECTED = {
    "unguided": (1, 0, 0, 0, 0),
    "labelled": (1, 0, 0, 0, 0),
    "model_guidance": (1, 0, 0, 0, 0),
    "averaged": (1, 0, 0, 4, 4),
    "clean_through": (1, 0, 1, 1, 1),
    "universal": (1, 0, 1, 4, 4),  # once forward, three iterations backward
    "universal_forward": (2, 0, 2, 2, 2),  # each step is made twice
    "classifier_free": (2, 0, 0, 0, 0),
    "dropout_guide": (2, 0, 0, 0, 0),
    "autoguidance": (1, 1, 0, 0, 0),
    "gradient_free": (2, 0, 0, 1, 0),  # these networks know nothing: all images are confused
    "gradient_free_random": (2, 0, 0, 0, 0),
    "full_sum": (10, 0, 0, 1, 0),
    "classifier_free_confused": (2, 0, 0, 1, 0),
    "autoguidance_confused": (1, 1, 0, 1, 0),
}


@pytest.fixture(scope="module", autouse=True)
def trained(tmp_path_factory):
    """A folder with the configurations, and tiny networks where they name trained ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("methods"))
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        Path("configs").symlink_to(ROOT / "configs")
        files = [
            *ROOT.glob("configs/ablation/*.yaml"),
            ROOT / "configs/overlay/digits_generation.yaml",
        ]
        text = PAGE + "".join(file.read_text() for file in files)
        for path in sorted(set(re.findall(r"[\w/]+/(?:classifier|denoiser)\.safetensors", text))):
            described = denoiser() if path.endswith("denoiser.safetensors") else classifier()
            described = CLEAN if "digits_clean" in path else described
            names = [str(y) for y in range(10)]
            module = build(described)
            export(module, path, described, class_names=names, shape=(1, 8, 8), weights="raw")
        yield


def sampled(name, *options):
    """Results of a method's configuration, as its first comment says to run it, in few steps."""
    command = (ROOT / f"configs/ablation/{name}.yaml").read_text().splitlines()[1]
    words = command.removeprefix("# robustguide ").split()
    steps = "grid.steps" if name == "elucd_nudge" else "grid.spacing"
    options += (f"--model.sampler.{steps}={STEPS}", "--data.count=6", "--trainer.callbacks=[]")
    options += (f"--trainer.default_root_dir={name}", "--trainer.accelerator=cpu")
    main([*words, *options, "--trainer.enable_progress_bar=false"])
    return json.loads(Path(name, "results.json").read_text())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_samples_and_costs_what_it_should(name):
    cost = sampled(name)["cost"]
    found = [cost[key] for key in KEYS]
    if name == "elucd_nudge":  # Heun: 2n - 1 evaluations, and a gradient a step
        assert found == [2 * STEPS - 1, 0, 0, STEPS, STEPS]
    elif name == "interval":  # (0.3, 5]: fewer than all steps, more than none
        assert STEPS < found[0] < 2 * STEPS and found[1:] == [0, 0, 0, 0]
    elif name == "three_terms":
        assert STEPS < found[0] < 2 * STEPS
        assert 0 < found[1] < STEPS
        assert found[2] == 0 and 0 < found[3] == found[4] < STEPS
    else:
        assert found == [STEPS * rows for rows in EXPECTED.get(name, GRADIENT)]
    assert cost["seconds"] > 0 and cost["peak_memory_bytes"] > 0


def terms(text):
    """What a configuration of terms builds."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--guidance", type=dict[str, Guidance])
    return parser.instantiate(parser.parse_object(yaml.safe_load(text))).guidance


@pytest.mark.parametrize("text", BLOCKS, ids=lambda text: text.split()[1].strip(":"))
def test_the_page_shows_configurations_that_build(text):
    built = terms(text)
    assert built and all(isinstance(term, Guidance) for term in built.values())


def test_three_terms_with_three_intervals_read_like_their_sentence():
    (text,) = [block for block in BLOCKS if "weak:" in block]
    sentence = " ".join(re.search(r"\*(above sigma 1 .*?)\*", PAGE, re.DOTALL)[1].split())
    for source in (text, yaml.safe_dump(guidance_of("three_terms"), sort_keys=False)):
        robust, free, weak = terms(source).values()
        assert all(isinstance(term, Within) for term in (robust, free, weak))
        said = (
            f"above sigma {robust.sigma_min:g} the robust classifier guides with scale "
            f"{robust.term.scales[0]:g}; from {free.sigma_min:g} to {free.sigma_max:g} the null "
            f"label, with scale {free.term.scales[0]:g}; below {weak.sigma_max:g} the weak "
            f"network, with scale {weak.term.scales[0]:g}."
        )
        assert said == sentence
        assert isinstance(free.term.term, ClassifierFree)


def guidance_of(name):
    """The terms of a file, as they are written."""
    config = yaml.safe_load((ROOT / f"configs/ablation/{name}.yaml").read_text())
    return {"guidance": config["model"]["init_args"]["guidance"]}
