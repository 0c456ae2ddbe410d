"""`robustguide rank`, on classifiers whose calibration is planted and on small finished runs."""

import json
import subprocess
import sys

import pytest
import tiny
import torch
import yaml
from oracles import plane

from robustguide.__main__ import main
from robustguide.checkpoints import build, export
from robustguide.commands import rank
from robustguide.guidance import AtDenoised, AtState
from robustguide.main import CommandLine
from robustguide.metrics import Answers
from robustguide.modules.examination import Examination
from robustguide.plans import ranking
from robustguide.plans.candidates import Candidate, Look
from robustguide.samplers import SeededNoise
from robustguide.samplers.seeds import EVALUATION

# The exact classifier of `oracles.plane` with noise, its logits times a factor, and data of it
OWN = """
import torch
from robustguide.data import ImageSource, Samples
from robustguide.interfaces import Classifier
from torch import nn

MEANS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
PRIORS = torch.tensor([0.5, 0.3, 0.2])

class Sure(Classifier):
    num_classes, shape = 3, (1, 1, 2)

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x, sigma):
        square = (x.flatten(1)[:, None] - MEANS.to(x)).square().sum(-1)
        return self.factor * (PRIORS.log() - square / (2 + 2 * sigma[:, None] ** 2))

class Line(Classifier):
    num_classes, shape = 3, (1, 1, 2)

    def __init__(self, bad=False):
        super().__init__()
        self.bad, self.net = bad, nn.Linear(2, 3)

    def forward(self, x, sigma):
        return self.net(x.flatten(1)) * (float("nan") if self.bad else 1)

class Attentive(Line):
    def forward(self, x, sigma):
        h = x.reshape(len(x), 1, 2, 1).repeat(1, 1, 1, 4)  # two tokens of four features
        return self.net(nn.functional.scaled_dot_product_attention(h, h, h)[:, 0, :, 0])

class Rows(Samples):
    def __init__(self, count):
        super().__init__((1, 1, 2), 3)
        generator = torch.Generator().manual_seed(1)
        self.y = torch.multinomial(PRIORS, count, True, generator=generator)
        self.x_0 = MEANS[self.y] + torch.randn(count, 2, generator=generator)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x_0[index].reshape(1, 1, 2), int(self.y[index]), index

    def drawn(self, index, augment, rng):
        raise AssertionError("training images are not asked for")

class Plane(ImageSource):
    class_names, shape = ["a", "b", "c"], (1, 1, 2)

    def __init__(self, count=2000):
        self.count = count

    def open(self, name):
        assert name == "validation", name
        return Rows(self.count)
"""
TRUST = ["--trust", "my_plane"]
LEVELS = (0.5, 2.0, 5.0)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")


def written(path, described, names="abc", shape=(1, 1, 2), trust=("my_plane",)):
    network = build(described, trust)
    said = {"class_names": list(names), "shape": shape, "weights": "raw"}
    export(network, path, described, **said, trust=list(trust))
    return str(path)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A package of the user's: a classifier of each factor, one linear and one that is broken."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_plane.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for factor in (0.5, 1, 2, 4):
            sure = {"class_path": "my_plane.Sure", "init_args": {"factor": factor}}
            written(folder / f"times_{factor:g}.safetensors", sure)
        for name, bad in (("line", False), ("broken", True)):
            line = {"class_path": "my_plane.Line", "init_args": {"bad": bad}}
            written(folder / f"{name}.safetensors", line)
        attentive = {"class_path": "my_plane.Attentive", "init_args": {}}
        written(folder / "attentive.safetensors", attentive)
        source = {"class_path": "my_plane.Plane"}
        data = {"class_path": "robustguide.data.Images", "init_args": {"source": source}}
        data["init_args"]["eval_batch_size"] = 1000
        (folder / "data.yaml").write_text(yaml.safe_dump({"data": data, "trainer": {"x": 1}}))
        yield folder


def words(own, place, *names, **options):
    files = [str(own / f"{name}.safetensors") for name in names]
    levels = map(str, LEVELS)
    more = [f"--{name}={value}" for name, value in options.items()]
    return [
        *("rank", *TRUST, *files, f"--config={own / 'data.yaml'}", "--device=cpu"),
        *(f"--folder={place}", f"--out={place / 'out.json'}", "--levels", *levels, *more),
    ]


def results(place):
    document = json.loads((place / "out.json").read_text())
    return document, {each["name"]: each for each in document["candidates"]}


def test_planted_overconfidence_is_ranked_by_its_size(own, tmp_path, capsys):
    names = ["times_4", "times_0.5", "times_1", "times_2"]
    assert main(words(own, tmp_path, *names)) == 0
    document, found = results(tmp_path)
    assert [each["rank"] for each in document["candidates"]] == [1, 2, 3, 4]
    assert next(iter(found)) == "times_1" and list(found)[-1] == "times_4"
    import my_plane

    rows, index = my_plane.Rows(2000), torch.arange(2000)
    noise = SeededNoise(index.tolist(), EVALUATION).draw((1, 1, 2))
    x_0 = rows.x_0.reshape(-1, 1, 1, 2)
    for name, entry in found.items():
        k = float(name.removeprefix("times_"))
        log_joint = [
            plane().log_joint(x_0 + level * noise, torch.full((2000,), level)) for level in LEVELS
        ]
        want = Answers.of(k * torch.stack(log_joint), rows.y)
        assert entry["integral_ece"] == pytest.approx(want.integral_ece, abs=1e-3)  # float32
        assert entry["nll"] == pytest.approx(float(want.mean_nll.mean()), abs=1e-5)
        assert entry["accuracy"] == pytest.approx(float(want.accuracy.mean()), abs=1e-3)
        assert (entry["n"], entry["bins"], entry["is_small"]) == (2000, 15, False)
        assert entry["limits"][0] <= entry["integral_ece"] <= entry["limits"][1]
        assert len(entry["curves"]["ece"]) == 3 and entry["parameters"] == 1
    assert found["times_1"]["integral_ece"] < found["times_1"]["if_calibrated"]["upper95"]
    assert found["times_2"]["limits"][0] > found["times_1"]["limits"][1]
    assert [entry["front"] for entry in found.values()] == [True, False, False, False]
    shown = capsys.readouterr().out
    assert "1* times_1" in shown and "n = 2000" in shown and "Spearman" not in shown


def test_what_is_kept_is_not_measured_again(own, tmp_path, monkeypatch, capsys):
    small = {"data.source.count": 300}
    main(words(own, tmp_path, "times_1", "times_2", **small))
    before = results(tmp_path)[1]
    asked = []
    measured = ranking.measured

    def watching(settings, *others):
        asked.extend(setting.name for setting in settings.values())
        return measured(settings, *others)

    monkeypatch.setattr(ranking, "measured", watching)
    main(words(own, tmp_path, "times_1", "times_2", **small))
    assert not asked and results(tmp_path)[1] == before
    main(words(own, tmp_path, "times_1", "times_2", "times_4", **small))
    assert asked == ["times_4"]  # the new one alone
    main(words(own, tmp_path, "times_1", bins=10, **small))
    main(words(own, tmp_path, "times_1", draws=2, **small))
    assert asked == ["times_4", "times_1", "times_1"]
    assert results(tmp_path)[1]["times_1"]["n"] == 600
    assert "n is below 2000" in capsys.readouterr().out.replace("\n", " ")
    main(words(own, tmp_path, "times_1", by="cost", **small, **{"data.eval_batch_size": 7}))
    assert len(asked) == 3  # neither the order nor the size of batches is a measurement


def test_cost_is_counted_by_hand(own, tmp_path):
    main(words(own, tmp_path, "line", **{"data.source.count": 50}))
    entry = results(tmp_path)[1]["line"]
    assert entry["flops"] == 2 * 2 * 3 + 2 * 2 * 3  # a product of 2 x 3, forward and backward
    assert entry["parameters"] == 9


def test_attention_counts_as_its_matrix_products(own, tmp_path):
    """Two products of 2 x 2 x 4 forward; backward, for queries, keys and values, twice as many."""
    main(words(own, tmp_path, "attentive", **{"data.source.count": 50}))
    entry = results(tmp_path)[1]["attentive"]
    assert entry["flops"] == 2 * 2 * 3 + 2 * 2 * 3 + 3 * 2 * (2 * 2 * 2 * 4)


def test_a_classifier_without_numbers_is_named(own, tmp_path):
    with pytest.raises(ValueError, match=r"broken: Logits are NaN or infinite"):
        main(words(own, tmp_path, "line", "broken", **{"data.source.count": 50}))
    assert len(list(tmp_path.glob("*.json"))) == 1  # the other one is kept


def test_other_classes_are_refused(own, tmp_path):
    described = tiny.classifier()
    path = written(tmp_path / "digits.safetensors", described, "0123456789", (1, 8, 8), ())
    with pytest.raises(ValueError, match="digits: the classifier knows 10 classes, the d"):
        main(["rank", path, *words(own, tmp_path)[1:]])
    line = {"class_path": "my_plane.Line"}
    moved = written(tmp_path / "moved.safetensors", line, "bac")
    with pytest.raises(ValueError, match="count 'b' otherwise"):
        main(["rank", moved, *words(own, tmp_path)[1:]])


def test_images_of_other_channels_are_refused(tmp_path):
    names, shape = "0123456789", (3, 8, 8)
    colour = tiny.classifier(shape=list(shape))
    path = written(tmp_path / "colour.safetensors", colour, names, shape, ())
    said = (
        "colour: the classifier reads images of 3 x 8 x 8, the data have 1 x 8 x 8; give data of"
    )
    with pytest.raises(ValueError, match=said):
        main(["rank", path, "--data=robustguide.data.Images", f"--folder={tmp_path}"])


def test_logits_are_those_of_an_examination():
    """Both views at once, several draws, and one evaluation of the denoiser for all candidates."""
    torch.manual_seed(0)
    specs = [tiny.classifier(), tiny.denoiser()]
    views = {"x": AtState(), "denoised": AtDenoised()}
    looks = {
        name: Look(specs[0], tiny.spec(f"guidance.{type(view).__name__}"), clip=0.5)
        for name, view in views.items()
    }
    grid, parts = ranking.Grid((0.1, 1.0), 15, 2), ranking.Parts()
    settings = {
        name: ranking.Setting(Candidate(name, (look,), specs[1]), grid, parts)
        for name, look in looks.items()
    }
    classifier, denoiser = settings["x"].classifiers[0], settings["denoised"].denoiser.denoiser
    x_0, y, index = tiny.batch()
    examined = Examination(grid.levels, views, draws=2, denoiser=denoiser, clip=0.5)
    want = examined.examine(classifier, x_0, y, index)
    for draw in range(2):
        noise = ranking.drawn(x_0, index, draw)
        with torch.no_grad():
            found = ranking.answers(settings, x_0, noise, grid.levels)
        for name, logits in found.items():
            torch.testing.assert_close(torch.stack(logits), want[name]["logits"][draw])
    calls, predict = [], denoiser.predict
    denoiser.predict = lambda *given: calls.append(1) or predict(*given)
    again = {f"{name}{i}": setting for i in "ab" for name, setting in settings.items()}
    ranking.answers(again, x_0, noise, grid.levels)
    assert len(calls) == 2  # one a level


def test_temperatures_labels_and_cost_of_a_look():
    """tau_1 multiplies the logits; labels choose among them; the denoiser's Jacobian costs."""
    torch.manual_seed(0)
    tempered = tiny.spec("guidance.Tempered", joint=3.0, marginal=0.5)
    state = tiny.spec("guidance.AtState")
    chosen = Look(tiny.classifier(), state, tempered, labels=(2, 0))
    grid, parts = ranking.Grid((1.0,)), ranking.Parts()
    settings = {
        "plain": ranking.Setting(
            Candidate("plain", (Look(tiny.classifier(), state),)), grid, parts
        ),
        "chosen": ranking.Setting(Candidate("chosen", (chosen,)), grid, parts),
    }
    x_0, _, index = tiny.batch()
    found = ranking.answers(settings, x_0, ranking.drawn(x_0, index, 0), (1.0,))
    want = 3 * found["plain"][0][:, [2, 0]]
    torch.testing.assert_close(found["chosen"][0], want)
    settings["chosen"].check((1, 8, 8), ["two", "zero"])
    with pytest.raises(ValueError, match="knows 2 classes, the data have 10"):
        settings["chosen"].check((1, 8, 8), list("0123456789"))
    costs = []
    for view in ("AtDenoised", "ThroughDenoiser"):
        look = Look(tiny.classifier(), tiny.spec(f"guidance.{view}"), evaluations=len(costs) + 1)
        setting = ranking.Setting(Candidate(view, (look,), tiny.denoiser()), grid, parts)
        costs.append(setting.cost((1, 8, 8), grid.levels)["flops"])
    own = settings["plain"].cost((1, 8, 8), grid.levels)["flops"]
    assert costs[0] == own > 0
    assert costs[1] > 2 * own  # twice, and each with the denoiser's own backward pass
    with pytest.raises(ValueError, match="denoiser makes images of shape"):
        setting.check((1, 4, 4), list("0123456789"))


def test_a_denoiser_that_would_be_told_the_label():
    told = tiny.denoiser()
    told["init_args"] |= {"net": tiny.mlp(num_classes=10), "has_null": False}
    look = Look(tiny.classifier(), tiny.spec("guidance.AtDenoised"))
    with pytest.raises(ValueError, match="needs a denoiser with a null label"):
        ranking.Setting(Candidate("a", (look,), told), ranking.Grid(), ranking.Parts())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs of a guided method and of another view of it; a second block, and unguided results."""
    place = tmp_path_factory.mktemp("finished")
    names = "0123456789"
    files = {
        kind: written(place / f"{kind}.safetensors", described, names, (1, 8, 8), ())
        for kind, described in (("denoiser", tiny.denoiser()), ("classifier", tiny.classifier()))
    }
    reader = tiny.loaded("classifier", files["classifier"])
    features = tiny.spec("metrics.ClassifierFeatures", network=reader, name="tiny")
    measure = [tiny.spec("callbacks.Quality", extractor=features)]
    base = tiny.generation(files["denoiser"], count=20, callbacks=measure)
    base["trainer"]["logger"] = False
    base["data"]["init_args"]["reference"] = tiny.spec("data.Digits", fold=[0, 20])
    state = {"term": tiny.guided(files["classifier"])}
    seen = json.loads(json.dumps(state))
    seen["term"]["init_args"]["term"]["init_args"]["view"] = tiny.spec("guidance.AtDenoised")
    for name, terms in (("state", state), ("seen", seen), ("unguided", {})):
        config = {"model": {"init_args": {"guidance": terms}}}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (place / "base.yaml").write_text(yaml.safe_dump(base))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustguide.callbacks.quality.publish", lambda *_: None)
        # the parsers of the other subcommands would take longer than the runs
        known = CommandLine.subcommands()
        patch.setattr(CommandLine, "subcommands", staticmethod(lambda: {"test": known["test"]}))
        for name, folder in (("state", "state/block_0"), ("seen", "seen")):
            configs = [f"--config={place / each}.yaml" for each in ("base", name)]
            main(["test", *configs, f"--trainer.default_root_dir={place / 'runs' / folder}"])
    block = json.loads((place / "runs/state/block_0/results.json").read_text())
    block["run"]["config"]["data"]["init_args"]["first"] = 20
    block["metrics"]["frechet/tiny"]["value"] += 0.5
    other = json.loads((place / "runs/seen/results.json").read_text())
    other["run"]["config"]["model"]["init_args"]["guidance"] = None
    for folder, results in (("state/block_1", block), ("unguided", other)):
        (place / "runs" / folder).mkdir()
        (place / "runs" / folder / "results.json").write_text(json.dumps(results))
    return place


def rerun(finished, place, *more):
    out = [f"--folder={place / 'kept'}", f"--out={place / 'out.json'}", "--device=cpu"]
    return main(["rank", *out, *more, "--levels", "0.1", "1", "--runs", str(finished / "runs")])


def test_runs_are_candidates_with_their_distances(finished, tmp_path, capsys, monkeypatch):
    """Without --config: the images are those that the runs were compared with."""
    assert rerun(finished, tmp_path) == 0
    document, found = results(tmp_path)
    assert set(found) == {"state", "seen"} and document["outcome"] == "frechet/tiny"
    assert "no classifier's gradient" in document["skipped"]["unguided"]
    values = [
        json.loads((finished / f"runs/state/block_{block}/results.json").read_text())["metrics"]
        for block in range(2)
    ]
    values = [each["frechet/tiny"]["value"] for each in values]
    assert found["state"]["frechet_of_blocks"] == values
    assert found["state"]["frechet"] == pytest.approx(sum(values) / 2)
    assert [found[name]["view"] for name in ("state", "seen")] == ["x", "denoised"]
    assert len(found["state"]["runs"]) == 2
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "cannot be said: 2 candidates have both" in shown
    assert "Not ranked: unguided (no classifier's gradient guides it" in shown

    monkeypatch.setattr(ranking, "measured", lambda *_: pytest.fail("measured again"))
    configs = [str(finished / f"{name}.yaml") for name in ("state", "seen")]
    assert rerun(finished, tmp_path, *configs, "--base", str(finished / "base.yaml")) == 0
    again = json.loads((tmp_path / "out.json").read_text())["candidates"]
    assert [each["name"] for each in again].count("state") == 2  # the YAML is the same setting
    assert len({each["setting"] for each in again}) == 2
    rerun(finished, tmp_path, f"--figure={tmp_path / 'ranking.png'}")
    assert (tmp_path / "ranking.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="No run has the metric 'frechet/else'"):
        rerun(finished, tmp_path, "--outcome=frechet/else")


def test_runs_of_a_network_that_changed(finished, tmp_path, capsys):
    folder = tmp_path / "runs"
    for name in ("state/block_0", "seen"):
        document = json.loads((finished / "runs" / name / "results.json").read_text())
        recorded = document["run"]["checkpoints"]
        changed = next(path for path in recorded if "classifier" in path)
        recorded[changed] = "0" * 64 if name == "seen" else recorded[changed]
        (folder / name).mkdir(parents=True)
        (folder / name / "results.json").write_text(json.dumps(document))
    main(["rank", "--runs", str(folder), f"--folder={tmp_path}", "--device=cpu"])
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "Not ranked: seen (its network" in shown and "another one now" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give something to rank"),
        (["nothing.safetensors"], "Give the labelled images, such as --config"),
        (["--runs", "nowhere"], "nowhere is not there"),
        (["a.safetensors", "--view=robustguide.guidance.AtDenoised"], "give one, such as --den"),
        (["--runs", "nowhere", "--config=absent.yaml"], r"absent\.yaml"),
        (["a.safetensors", "--levels", "-1"], "levels must be finite"),
        (
            ["a.safetensors", "--draws=0", "--data=robustguide.data.Images"],
            "at least 1, got 15",
        ),
        (["a.safetensors", "--data=robustguide.data.Images"], "a.safetensors does not exist"),
    ],
)
def test_commands_without_a_meaning(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["rank", *words])


def test_a_configuration_without_a_classifier(finished, tmp_path):
    command = ["rank", "--base", str(finished / "base.yaml"), f"--folder={tmp_path}"]
    with pytest.raises(ValueError, match="unguided: no classifier's gradient guides it"):
        main([command[0], str(finished / "unguided.yaml"), *command[1:]])
    (tmp_path / "empty.yaml").write_text("data: null")
    with pytest.raises(ValueError, match="has no `model`"):
        main(["rank", str(tmp_path / "empty.yaml"), "--base", str(tmp_path / "empty.yaml")])


def test_short_names():
    names = rank.titles(["runs/a/classifier.safetensors", "b/mine.safetensors", "c/mine.pt"])
    assert list(names.values()) == ["a", "b/mine.safetensors", "c/mine.pt"]


def test_help_names_examples_and_leaves_torch_alone():
    code = "from robustguide.__main__ import help_text; import sys\n"
    code += "assert 'rank' in help_text() and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["rank", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "robustguide rank --runs runs/ablation" in shown and "--view" in shown
    with pytest.raises(SystemExit) as stopped:
        main(["rank", "--nothing"])
    assert stopped.value.code == 2
