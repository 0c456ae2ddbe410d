"""`robustguide smooth`, on networks whose answers are known before and after."""

from pathlib import Path

import pytest
import torch
import yaml
from checkpoint_examples import spec
from rich.console import Console

from robustguide.__main__ import main
from robustguide.checkpoints import UntrustedError, build, export, load_classifier, read_metadata
from robustguide.classifiers import Smooth
from robustguide.commands import smooth
from robustguide.data import Digits
from robustguide.metrics import wilson_limits

DIGITS = f"--config={Path(__file__).parents[2] / 'configs/overlay/digits.yaml'}"
OWN = """
import torch
from torch import nn
from torch.nn import functional as F

class Decided(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.full((10,), -9.0))

    def forward(self, images):
        logits = self.bias.repeat(len(images), 1)
        logits[:, 3], logits[:, 8] = 0.2, F.relu(logits[:, 1] + 8)
        return logits
"""
SHELF = spec("robustguide.classifiers.OffTheShelf", net=spec("my_nets_of_smooth.Decided"))
SHELF["init_args"] |= {"num_classes": 10, "mean": [0.5], "std": [0.5]}
TRUST = ["--trust", "my_nets_of_smooth"]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A network of the user's own, whose last hidden unit is ReLU(-1), whatever the image.

    The logit of class 3 is 0.2, that of class 8 the ReLU: 0, or log(1 + exp(-beta)) / beta with
    Softplus, which is 0.313 for beta 1 and 0.063 for beta 2. So the answer changes between them.
    """
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_nets_of_smooth.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def written(path, names="0123456789"):
    said = {"class_names": list(names), "shape": (1, 8, 8), "weights": "ema", "extra": {"step": 7}}
    classifier = build(SHELF, TRUST[1:])
    export(classifier, path, SHELF, **said, trust=TRUST[1:])
    return str(path)


@pytest.fixture(scope="module")
def file(own):
    return written(own / "classifier.safetensors")


def held(split="validation"):
    """Images of each class, and of all."""
    samples = Digits().split(split)
    labels = [samples.labels[row] for row in samples.rows]
    return [labels.count(y) for y in range(10)], len(labels)


def rows(text):
    """Cells by activation."""
    lines = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: line[1:] for line in cells if line and line[0][:4] in ("ReLU", "Soft")}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_accuracy_before_and_after(file, capsys, split):
    betas = ["--beta=1", "--beta=2", "--beta=20"]
    assert main(["smooth", *TRUST, file, DIGITS, *betas, f"--split={split}", "--device=cpu"]) == 0
    shown = capsys.readouterr().out
    right, count = held(split)
    found = rows(shown)
    assert f"{split} images without noise, n = {count}" in shown
    assert list(found) == ["ReLU", "Softplus 20", "Softplus 2", "Softplus 1"]
    for name, y in {"ReLU": 3, "Softplus 20": 3, "Softplus 2": 3, "Softplus 1": 8}.items():
        assert found[name][0] == f"{100 * right[y] / count:.2f} %"
        assert found[name][-1] == str(right[y])
        low, high = wilson_limits(torch.tensor(right[y]).double(), torch.tensor(count).double())
        assert found[name][1] == f"{100 * low:.1f} to {100 * high:.1f}"
    change = 100 * (right[8] - right[3]) / count
    assert change < -0.5
    assert [found[f"Softplus {b}"][2] for b in (20, 2)] == ["+0.00", "+0.00"]
    assert found["Softplus 1"][2] == f"{change:+.2f}"


def test_the_smooth_classifier_is_written(file, tmp_path, capsys):
    out = str(tmp_path / "new" / "smooth.safetensors")
    limited = ["--data.eval_limit=20", "--device=cpu"]
    main([*TRUST, "smooth", file, DIGITS, "--beta=1", f"--out={out}", *limited])
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: Softplus with beta 1"
    loaded, x = load_classifier(out, trust=TRUST[1:]), torch.randn(3, 1, 8, 8)
    want = torch.tensor([0.2, -9, 0.313262]).expand(3, 3)  # log(1 + exp(-1))
    torch.testing.assert_close(loaded(x, torch.zeros(3))[:, [3, 0, 8]], want, rtol=0, atol=1e-6)
    assert isinstance(loaded, Smooth) and loaded.beta == 1
    told = read_metadata(out)
    assert (told.weights, told.shape, told.class_names[3]) == ("ema", (1, 8, 8), "3")
    labels = [Digits().split("validation")[179 * i // 20][1] for i in range(20)]
    right = {"before": labels.count(3), "after": labels.count(8), "images": 20}
    assert told.extra == {"step": 7, "right": right}


def test_a_classifier_by_its_class_path(tmp_path, capsys):
    """A configuration for the trainer serves too; what comes later goes over it."""
    data = {"class_path": "robustguide.data.Images", "init_args": {"batch_size": 16}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"data": data, "trainer": {"max_steps": 3}}))
    (tmp_path / "b.yaml").write_text(
        yaml.safe_dump({"data": {"init_args": {"eval_limit": 9}}, "seed_everything": 1})
    )
    (tmp_path / "c.yaml").write_text("")
    words = ["--classifier=robustguide.checkpoints.torchvision_classifier"]
    words += ["--classifier.name=shufflenet_v2_x0_5", "--classifier.num_classes=10"]
    words += ["--classifier.preprocess=raw", "--device=cpu", "--beta=3"]
    words += [f"--config={tmp_path / name}.yaml" for name in "abc"]
    out = str(tmp_path / "smooth.safetensors")
    main(
        ["smooth", *words, "--data.source=robustguide.data.FashionMNIST", f"--out={out}"][:0]
        or ["smooth", *words, f"--out={out}"]
    )
    assert "n = 9\n" in capsys.readouterr().out
    loaded = load_classifier(out)
    assert loaded.beta == 3 and loaded.classifier.mean.flatten().tolist() == [0.5] * 3
    assert loaded.metadata.class_names == tuple(map(str, range(10)))


def test_a_card_is_a_classifier_too(file, monkeypatch, capsys):
    asked = []

    def load(path, card):
        asked.append((path, card))
        return load_classifier(file, trust=TRUST[1:])

    monkeypatch.setattr("robustguide.checkpoints.load_classifier", load)
    main(["smooth", "--card=resnet50", DIGITS, "--data.eval_limit=5", "--device=cpu"])
    assert asked == [(None, "resnet50")]
    assert list(rows(capsys.readouterr().out)) == ["ReLU", "Softplus 5", "Softplus 3"]


def test_a_terminal_sees_a_bar(file, monkeypatch):
    consoles = []

    def console():
        consoles.append(Console(force_terminal=True, record=True, width=100))
        return consoles[-1]

    monkeypatch.setattr(smooth, "Console", console)
    main(
        [
            "smooth",
            *TRUST,
            file,
            DIGITS,
            "--data.batch_size=10",
            "--data.eval_limit=40",
            "--beta=3",
        ]
    )
    assert "4/4" in consoles[0].export_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([DIGITS], "Give the file of a classifier, or --card, or --classifier; one of them"),
        (["FILE"], r"Give the images to classify, such as --config configs/overlay/digits\.yaml"),
        (
            ["FILE", DIGITS, "--beta=3", "--beta=5", "--out=a.safetensors"],
            "--out writes one classifier, but beta is 5, 3; give one",
        ),
        (["FILE", DIGITS, "--beta=-1"], "beta must be positive, got -1.0"),
    ],
)
def test_wrong_command_lines(words, message, file):
    with pytest.raises((ValueError, OSError), match=message):
        main(["smooth", *TRUST, *(file if word == "FILE" else word for word in words)])


def test_classes_in_another_order_are_refused(own, tmp_path):
    path = written(tmp_path / "a.safetensors", "1023456789")
    with pytest.raises(
        ValueError, match=r"the data have 10, and count '1' otherwise; .*Relabelled"
    ):
        main(["smooth", *TRUST, path, DIGITS])


def test_other_data_are_refused():
    """Before any of them is classified."""
    with pytest.raises(ValueError, match="knows 1000 classes, the data have 10; give data of"):
        smooth.run(
            [
                "--classifier=robustguide.checkpoints.torchvision_classifier",
                DIGITS,
                "--classifier.name=shufflenet_v2_x0_5",
            ]
        )


def test_a_network_of_ones_own_has_to_be_trusted(file):
    with pytest.raises(UntrustedError, match="--trust my_nets_of_smooth"):
        main(["smooth", file, DIGITS])


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["smooth", "--help"])
    shown = capsys.readouterr().out
    assert not stopped.value.code and "\n  robustguide smooth --card resnet50 --beta 8" in shown
    assert "class_path: robustguide.classifiers.Smooth" in shown
