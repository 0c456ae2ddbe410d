"""`robustguide atlas` on small trained networks of digits."""

import json

import pytest
import tiny
import torch
import yaml
from PIL import Image

from robustguide.__main__ import main
from robustguide.checkpoints import load_classifier, load_denoiser, sha256_of
from robustguide.data import Digits
from robustguide.samplers import evaluation_noise

LEVELS = (0.2, 1.0)
COUNT = 12


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")


@pytest.fixture(scope="module")
def networks(runs):
    return [str(runs / name / f"{name}.safetensors") for name in ("classifier", "denoiser")]


def words(place, *classifiers, **options):
    more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    data = place.parent / "data.yaml"
    data.write_text(yaml.safe_dump({"data": tiny.spec("data.Images"), "trainer": {"x": 1}}))
    return [
        *("atlas", *classifiers, f"--config={data}", f"--folder={place}", "--device=cpu"),
        *(f"--count={COUNT}", *more, "--levels", *map(str, LEVELS)),
    ]


def strict(path):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_every_kind_is_measured_and_drawn(networks, tmp_path, capsys):
    classifier, denoiser = networks
    own = tmp_path / "own.yaml"
    calibrated = tiny.spec(
        "classifiers.Calibrated",
        classifier=tiny.loaded("classifier", classifier),
        scaling=tiny.spec("classifiers.Temperature"),
    )
    own.write_text(yaml.safe_dump({"classifier": calibrated}))
    place = tmp_path / "out"
    asked = [f"state={classifier}", f"clean={classifier}@denoised", f"own={own}"]
    assert main(words(place, *asked, denoiser=denoiser, batch_size=5)) == 0
    found = strict(place / "atlas.json")
    assert [each["name"] for each in found["directions"]] == [
        *("state", "clean", "own", "classifier-free")
    ]
    state, clean, own_found, free = found["directions"]
    split = Digits().split("test")
    index = torch.tensor([i * len(split) // COUNT for i in range(COUNT)])
    x_0, y, _ = split.__getitems__(index.tolist())
    noise = evaluation_noise(index).draw(x_0.shape[1:])
    networks = load_classifier(classifier), load_denoiser(denoiser)
    for number, level in enumerate(LEVELS):
        x, sigma = (x_0 + level * noise).requires_grad_(), torch.full((COUNT,), level)
        log_p = networks[0](x, sigma).log_softmax(-1)[torch.arange(COUNT), y]
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
        with torch.no_grad():
            null = torch.full_like(y, 10)
            toward = networks[1](x, sigma, y) - networks[1](x, sigma, null)
        norm = level * gradient.flatten(1).norm(dim=1)
        cosine = torch.cosine_similarity(gradient.flatten(1), toward.flatten(1))
        told = state["measured"]
        assert told["norm"][number]["value"] == pytest.approx(float(norm.quantile(0.5)), rel=1e-4)
        assert told["cosine"][number]["value"] == pytest.approx(float(cosine.mean()), abs=1e-4)
        assert told["cosine"][number]["n"] == COUNT
        assert free["measured"]["norm"][number]["value"] == pytest.approx(
            float((toward.flatten(1).norm(dim=1) / level).quantile(0.5)), rel=1e-4
        )
    # a temperature of 1 changes nothing, and the denoised image is another one
    assert own_found["measured"]["norm"][1]["value"] == pytest.approx(
        state["measured"]["norm"][1]["value"], rel=1e-5
    )
    assert own_found["minus_first"]["cosine"][0]["value"] == pytest.approx(0, abs=1e-5)
    assert clean["measured"] != state["measured"]
    assert sha256_of(classifier) in json.dumps(state["asked"])
    assert sha256_of(denoiser) in json.dumps(free["asked"])
    assert len({each["digest"] for each in found["directions"]}) == 4
    assert (found["n"], found["seed"], found["split"]) == (COUNT, 0, "test")
    assert found["white_share"] == 9 / 64
    for name in ("atlas.png", "curves.png"):
        with Image.open(place / name) as picture:
            assert picture.width == 700
    out = capsys.readouterr().out
    assert "classifier-free" in out and f"{COUNT} test images" in out
    assert not list(place.glob("*.part"))


def test_seeds_classes_and_images_are_what_was_asked_for(networks, tmp_path):
    state = f"state={networks[0]}"
    main(words(tmp_path / "a", state, seed=1, **{"class": "3", "image": 7}))
    main(words(tmp_path / "b", state, seed=1, batch_size=5))
    main(words(tmp_path / "c", state, seed=2))
    a, b, c = (strict(tmp_path / name / "atlas.json") for name in "abc")
    assert a["picture"]["image"] == 7 and a["picture"]["class"] == 3
    assert b["picture"]["class_name"] == b["picture"]["image_class_name"]
    norms = [each["directions"][0]["measured"]["norm"][0]["value"] for each in (a, b, c)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] != norms[2]
    assert not a["has_direction"]


def test_what_cannot_be_is_refused_before_anything_is_measured(networks, tmp_path):
    classifier = networks[0]
    state, place = f"state={classifier}", tmp_path / "out"
    with pytest.raises(ValueError, match="There is no class 'dog'; the data have 0 to 9"):
        main(words(place, state, **{"class": "dog"}))
    with pytest.raises(ValueError, match="--image 100000 is not in the test split"):
        main(words(place, state, image=100000))
    with pytest.raises(ValueError, match="which nobody makes; give --denoiser"):
        main(words(place, f"{classifier}@denoised"))
    with pytest.raises(ValueError, match="holds a classifier, but a denoiser was asked for"):
        main(words(place, state, denoiser=classifier))
    with pytest.raises(ValueError, match="--count and --batch-size must be at least 1"):
        main(words(place, state, batch_size=0))
    with pytest.raises(ValueError, match="Give the images, such as --config"):
        main(["atlas", state, f"--folder={place}"])
    assert not place.exists()
