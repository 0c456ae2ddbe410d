"""docs/scale.md says what `robustguide cost` counts."""

import re
import shlex
from pathlib import Path

import pytest

from robustguide.__main__ import main
from robustguide.commands.cost import number, scaled
from robustguide.plans.cost import PEAKS, cost_of, read

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/scale.md").read_text()
CHEAP = ("edm_imagenet64_18", "edm2 edm2_img64_s_fid")
# One of each kind; the rows left out have the same networks and samplers.
LONG = ("adm64", "kawar_imagenet128", "adm256_ddim25", "edm2 edm2_img512_s_guid_fid", "dit256")
COMMAND = re.compile(r"^(robustguide cost [^\n]*)\n```\n\n```text\n(.*?)^```$", re.M | re.S)


def table():
    """Cells of the table by configurations."""
    lines = TEXT.partition("<!-- cost -->")[2].partition("<!-- end of cost -->")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]
    return {" ".join(re.findall(r"`(\w+)`", row[1])): row[2:] for row in rows[2:]}


def sampled(configurations):
    """Rows of a network of the parts that a test asks for, and what else a line says."""
    cost = cost_of(read([f"configs/published/{name}.yaml" for name in configurations.split()]))
    forward = [part for part in cost.parts if part.work == "forward"]
    own = sum(part.rows for part in forward if part.network == "denoiser")
    guiding = sum(part.rows for part in forward if part.network.startswith("guidance."))
    assert cost.images == 50_000
    hours = [number(cost.gpu_hours(gpu, name, 0.35)) for gpu in PEAKS for name in PEAKS[gpu]]
    return [str(own), str(guiding or "-"), scaled(cost.flops), *hours]


@pytest.mark.parametrize(
    "configurations",
    [*CHEAP, *(pytest.param(row, marks=pytest.mark.check) for row in LONG)],
)
def test_a_row_is_what_is_counted(configurations, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert table()[configurations] == sampled(configurations)


def test_every_backbone_has_a_row():
    named = " ".join(table())
    for name in ("adm64", "adm128", "adm256", "kawar_imagenet128", "edm_imagenet64_18"):
        assert name in named
    for name in ("edm2_img64_s_fid", "edm2_img512_s_guid_fid", "dit256", "dit512"):
        assert name in named
    assert set(CHEAP) <= set(table())


@pytest.mark.check
@pytest.mark.parametrize(("command", "shown"), COMMAND.findall(TEXT))
def test_a_command_prints_what_is_shown(command, shown, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(shlex.split(command)[1:]) == 0
    found = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert found == shown.splitlines()


def test_the_arithmetic():
    """What follows from numbers of the commands and of ImageNet."""
    a_row, state, an_image = 0.277, 0.681, 0.731e12
    for said, value in (
        ("1,268,355", round(1_281_167 * 0.99)),
        ("30.3 times", f"{300_000 * 128 / 1_268_355:.1f} times"),
        ("5.1 GB", f"{state + 16 * a_row:.1f} GB"),
        ("36 GB", f"{state + 128 * a_row:.0f} GB"),
        ("63 GB", f"{1_281_167 * 3 * 128**2 / 1e9:.0f} GB"),
        ("98 GB", f"{1_281_167 * 3 * 160**2 / 1e9:.0f} GB"),
        ("| 149 |", f"| {0.35 * 312e12 / an_image:.0f} |"),
        ("| 1,195 |", f"| {8 * 0.35 * 312e12 / an_image:,.0f} |"),
        ("| 474 |", f"| {0.35 * 989e12 / an_image:.0f} |"),
        ("| 3,788 |", f"| {8 * 0.35 * 989e12 / an_image:,.0f} |"),
        ("291 MB", f"{3788 * 76_800 / 1e6:.0f} MB"),
        ("511 MB", f"{42_568_040 * 12 / 1e6:.0f} MB"),
        ("15.3 GB", f"{30 * 42_568_040 * 12 / 1e9:.1f} GB"),
        ("303,000", f"{round(15.166 * 20_000, -3):,.0f}"),
        ("55 s", f"{15.166 / 1000 * 3600:.0f} s"),
        ("197 TB", f"{1e9 * 3 * 256**2 / 1e12:.0f} TB"),
        ("33.6 MB", f"{2048 * 2049 * 8 / 1e6:.1f} MB"),
        ("3.4 TB", f"{1e5 * 2048 * 2049 * 8 / 1e12:.1f} TB"),
    ):
        assert f"{value:,}" == said if isinstance(value, int) else value == said
        assert said in TEXT
