import json
import math
from statistics import mean, stdev

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import stats

from robustguide.report import ablation
from robustguide.report.ablation import interval, student_t

BLOCKS = {
    "unguided": [(0.1, 8.0, 0.5), (0.12, 7.5, 0.25), (0.14, 8.5, 0.75)],
    "robust_guided": [(0.9, 2.0, None), (0.9, 2.5, 0.25), (0.9, 2.1, 0.25)],
}


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 30, 99])
def test_quantiles_are_students(freedom, level):
    expected = stats.t.ppf((1 + level) / 2, freedom)
    assert student_t(freedom, level) == pytest.approx(expected, rel=1e-10)


def test_the_interval_by_hand():
    """Two degrees of freedom: t^2 = 2 a^2 / (1 - a^2)."""
    found = interval([1.0, 2.0, 6.0])
    t = math.sqrt(2 * 0.95**2 / (1 - 0.95**2))
    assert found.mean == 3 and found.values == (1.0, 2.0, 6.0)
    assert found.half_width == pytest.approx(t * math.sqrt(7) / math.sqrt(3), rel=1e-12)


def test_ninetyfive_of_a_hundred_intervals_hold_the_mean():
    values = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
    found = [interval(row) for row in values.tolist()]
    held = mean(abs(one.mean - 1) <= one.half_width for one in found)
    assert held == pytest.approx(0.95, abs=0.02)  # three standard errors


def test_no_interval_without_a_number_in_each_block():
    assert interval([1.0, None, 2.0]).mean is None
    assert interval([1.0, None, 2.0]).half_width is None
    assert interval([2.0, 2.0]).half_width == 0
    with pytest.raises(ValueError, match="two values or more, got 1"):
        interval([1.0])


@pytest.fixture
def runs(tmp_path):
    """Two methods' results in three blocks."""
    found = {}
    for name, blocks in BLOCKS.items():
        found[name] = [tmp_path / name / f"block_{block}" for block in range(len(blocks))]
        for block, (accuracy, frechet, ece) in enumerate(blocks):
            cost = {"denoiser_evaluations": 50.0, "seconds_per_image": 0.1 + block / 100}
            cost |= {"classifier_forward": 50.0 * (name != "unguided"), "decoder_calls": 0.0}
            cost |= {"peak_memory_kind": "device", "steps": 0}
            metrics = {"integral_ece": ece, "frechet/toy_features": frechet}
            metrics["class_accuracy"] = accuracy
            document = {"metrics": {k: {"value": v, "n": 9} for k, v in metrics.items()}}
            found[name][block].mkdir(parents=True)
            text = json.dumps(document | {"cost": cost})
            (found[name][block] / "results.json").write_text(text)
    return found


def results_of(runs):
    return {"methods": ablation.collect(runs), "blocks": 3, "count": 9}


def test_what_is_collected_is_what_the_blocks_hold(runs):
    found = ablation.collect(runs)
    assert list(found) == list(BLOCKS)
    for name, blocks in BLOCKS.items():
        metrics = found[name]["metrics"]
        columns = zip(*blocks, strict=True)
        keys = ("class_accuracy", "frechet/toy_features", "integral_ece")
        for key, values in zip(keys, columns, strict=True):
            assert metrics[key]["values"] == values
            if None not in values:
                assert metrics[key]["mean"] == pytest.approx(mean(values), rel=1e-12)
                half = stats.t.ppf(0.975, 2) * stdev(values) / math.sqrt(3)
                assert metrics[key]["half_width"] == pytest.approx(half, rel=1e-9)
        assert found[name]["runs"] == [folder.as_posix() for folder in runs[name]]
        assert found[name]["cost"]["seconds_per_image"]["mean"] == pytest.approx(0.11)
        assert "peak_memory_kind" not in found[name]["cost"]
    assert found["robust_guided"]["metrics"]["integral_ece"]["mean"] is None


def test_the_table_shows_it(runs):
    found = ablation.table(results_of(runs))
    titles = ["method", "class accuracy", "Frechet distance (toy features)", "integral ECE"]
    assert found.columns == [*titles, "denoiser", "classifier forward", "seconds per image"]
    seconds = "0.11 ± 0.0248"
    assert found.rows == [
        ["unguided", "0.120 ± 0.050", "8.000 ± 1.242", "0.500 ± 0.621", "50", "0", seconds],
        ["robust guided", "0.900 ± 0.000", "2.200 ± 0.657", "—", "50", "50", seconds],
    ]
    assert "3 blocks of 9 images" in found.caption
    assert ablation.table(results_of(runs), ["metrics"]).columns == titles
    assert ablation.table(results_of(runs), ["cost"]).columns[1:] == found.columns[4:]


def test_a_metric_that_one_method_lacks(runs):
    found = results_of(runs)
    del found["methods"]["unguided"]["metrics"]["class_accuracy"]
    assert [row[1] for row in ablation.table(found).rows] == ["—", "0.900 ± 0.000"]
    assert len(ablation.dots(found).axes) == 3


def test_markdown_has_a_row_a_method(runs):
    lines = ablation.markdown(ablation.table(results_of(runs))).splitlines()
    assert lines[0].startswith("| method | class accuracy |") and lines[1].count("---") == 7
    assert lines[2].startswith("| unguided | 0.120 ± 0.050 | 8.000 ± 1.242 |")
    assert lines[4] == "" and lines[5].startswith("Mean over 3 blocks")
    assert {line.count("|") for line in lines[:4]} == {8}


def test_dots_stand_at_the_means_with_their_intervals(runs):
    figure = ablation.dots(results_of(runs))
    accuracy, distance, ece = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "class accuracy",
        "Frechet distance\n(toy features)",
        "integral ECE",
    ]
    points = [line.get_xydata()[0].tolist() for line in accuracy.lines if line.get_marker() == "o"]
    assert points == [[pytest.approx(0.12), 0], [pytest.approx(0.9), 1]]
    (bar,) = distance.containers[0].lines[2]
    (ends,) = bar.get_segments()
    assert ends[:, 0].tolist() == pytest.approx([8 - 1.2421, 8 + 1.2421], abs=1e-4)
    assert len(ece.containers) == 1  # robust_guided has no ECE
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert names == ["unguided", "robust guided"]
    low, high = accuracy.get_ylim()
    assert low > high  # the first method on top


def test_files_that_are_left(runs, tmp_path):
    found = results_of(runs)
    ablation.write(tmp_path / "out", found, runs)
    kept = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert kept == json.loads(json.dumps(found))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"ablation.json", "ablation.md", "ablation.png"}
    for name, folders in runs.items():
        level = 255 * (name != "unguided")
        pixels = torch.full((3, 1, 4, 4), level, dtype=torch.uint8)
        save_file({"pixels": pixels}, folders[0] / "samples.safetensors")
    figure = ablation.samples(runs, count=2)
    shades = [image.get_array().mean() for image in figure.axes[0].images]
    assert shades == [0, 0, 1, 1]
    ablation.write(tmp_path / "out", found, runs)
    with Image.open(tmp_path / "out" / "samples.png") as image:
        assert image.size[0] == 700
