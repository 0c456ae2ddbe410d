"""Plans of replicated tables: their cells, what they refuse, and the plan that ships."""

from pathlib import Path

import pytest
import yaml

from robustguide.plans import replication
from robustguide.plans.ablation import Way
from robustguide.plans.measuring import Measured
from robustguide.plans.replication import PLAN, cost_of_left, read

ROOT = Path(__file__).parents[2]
PLANNED = {
    "configs": ".",
    "base": ["base"],
    "count": 10,
    "blocks": 3,
    "cells": {
        "plain": {},
        "guided": {"configs": ["guide"], "set": ["a.b=1"], "sweep": {"model.scale": [0.5, 2.0]}},
    },
    "tables": {
        "one": {
            "title": "T",
            "source": "S",
            "found": "two\n  lines",
            "cells": ["plain", "guided"],
            "claims": ["frechet: guided_2 < plain"],
        },
        "two": {"title": "U", "cells": ["guided_0.5"]},
    },
}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Writes a plan with changes, and reads it."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "guide"):
        (tmp_path / f"{name}.yaml").write_text("model: {}\n")

    def make(**changes):
        Path("plan.yaml").write_text(yaml.safe_dump(PLANNED | changes))
        return read(Path("plan.yaml"), Path("runs"))

    return make


def test_a_sweep_makes_a_cell_of_each_value(plan):
    found = plan()
    guide = (Path("guide.yaml"),)
    assert found.runs.methods == {
        "plain": Way(()),
        "guided_0.5": Way(guide, ("a.b=1", "model.scale=0.5")),
        "guided_2": Way(guide, ("a.b=1", "model.scale=2.0")),
    }
    assert found.tables["one"].cells == ("plain", "guided_0.5", "guided_2")
    assert found.tables["one"].found == "two lines"
    job = found.runs.job("guided_2", 1)
    assert job.args[:5] == ("test", "--config", "base.yaml", "--config", "guide.yaml")
    assert job.args[5:9] == ("--a.b=1", "--model.scale=2.0", "--data.first=10", "--data.count=10")
    assert job.args[9] == "--trainer.default_root_dir=runs/guided_2/block_1"


def test_some_tables_need_their_cells_alone(plan):
    found = plan().chosen(["two"])
    assert list(found.runs.methods) == ["guided_0.5"] and list(found.tables) == ["two"]
    assert list(plan().chosen([]).runs.methods) == ["plain", "guided_0.5", "guided_2"]
    with pytest.raises(ValueError, match=r"There is no table 'tow'.*did you mean two"):
        plan().chosen(["tow"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cell": {}}, "has 'cell'.*did you mean cells"),
        ({"cells": {"plain": {"config": []}}}, "The cell 'plain' has 'config'"),
        ({"cells": {"plain": 3}}, "The cell 'plain' is 3; expected a mapping"),
        ({"tables": {"one": {"title": "T", "cells": ["plane"]}}}, "'plane'.*did you mean plain"),
        (
            {
                "tables": {
                    "one": {"title": "T", "cells": ["plain"], "claims": ["a: plain < guided_2"]}
                }
            },
            "claims 'a: plain < guided_2' of cells it does not show",
        ),
        ({"blocks": 2}, "--blocks is 2; expected 3 or more"),
    ],
)
def test_what_nothing_reads_is_refused(plan, changes, words):
    with pytest.raises(ValueError, match=words):
        plan(**changes)


def test_what_is_not_there_is_named(plan, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The plan nowhere.yaml is not there"):
        read(Path("nowhere.yaml"), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"The configuration other.yaml is not there"):
        plan(cells={"plain": {"configs": ["other"]}}, tables={})


def test_the_plan_that_ships_runs_no_cell_that_no_table_shows(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = read(PLAN, Path("docs/replication"))
    assert found.runs.count == 1000 and found.runs.blocks == 3
    shown = {cell for table in found.tables.values() for cell in table.cells}
    assert shown == set(found.runs.methods)  # no cell is run that no table shows
    assert all(table.claims and table.source and table.found for table in found.tables.values())


def test_what_is_left_is_counted_and_where_images_decide_timed(tmp_path, monkeypatch):
    """At 20 images a second, each counted image takes its share of the first one's FLOPs."""
    monkeypatch.chdir(ROOT)
    taken = Measured("cpu", 20, 1.0, None, None, "")
    monkeypatch.setattr(replication, "measured", lambda told, batch: taken)
    plan = read(PLAN, tmp_path)
    once, twice = (
        cost_of_left(plan.runs.only(cells))
        for cells in (["unguided"], ["unguided", "free_2", "gradient_free"])
    )
    assert once.timed == 0 and once.hours == pytest.approx(3 * 1000 / 20 / 3600)
    # two evaluations in place of one; what is only timed takes as long as the first cell
    assert twice.flops == pytest.approx(3 * once.flops, rel=0.01)
    assert twice.timed == 3 * 1000 / 20 and twice.hours == pytest.approx(4 * once.hours, rel=0.01)
    (tmp_path / "unguided/block_0").mkdir(parents=True)
    (tmp_path / "unguided/block_0/results.json").touch()
    assert cost_of_left(plan.runs.only(["unguided"])).hours == pytest.approx(once.hours * 2 / 3)
