"""Plans of array jobs: who makes what, and that a plan stays what it was."""

import json

import pytest

from robustguide.plans.arrays import (
    Plan,
    Setting,
    batch_size_of,
    chunk_of,
    ranges,
    sha256,
    sweep,
)

TEXTS = ["a: 1\n", "a: 2\n"]


def plan_in(folder, tasks=3, count=20, chunk=6, first=100):
    settings = tuple(
        Setting(name, (f"a={name}",), sha256(text.encode()))
        for name, text in zip(("one", "two"), TEXTS, strict=True)
    )
    return Plan(folder, "test", settings, tasks, first, count, chunk)


@pytest.mark.parametrize("tasks", [1, 3, 5, 8])
def test_each_image_of_each_setting_is_in_one_chunk_of_one_task(tmp_path, tasks):
    plan = plan_in(tmp_path, tasks)
    given = [unit for task in range(tasks) for unit in plan.of_task(task)]
    assert given == plan.units and len(given) == 8
    for name in ("one", "two"):
        chunks = [unit.numbers for unit in given if unit.setting.name == name]
        assert [number for chunk in chunks for number in chunk] == list(range(100, 120))
        assert [len(chunk) for chunk in chunks] == [6, 6, 6, 2]
    sizes = [len(plan.of_task(task)) for task in range(tasks)]
    assert max(sizes) - min(sizes) <= 1


def test_chunks_do_not_depend_on_the_number_of_tasks(tmp_path):
    assert plan_in(tmp_path, 1).units == plan_in(tmp_path, 7).units


@pytest.mark.parametrize("task", [-1, 3, 70])
def test_a_task_out_of_range(tmp_path, task):
    with pytest.raises(ValueError, match=rf"no task {task} .* 3 tasks are 0 to 2; .*--array=0-2"):
        plan_in(tmp_path).of_task(task)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = plan_in(tmp_path)
    plan.write(TEXTS)
    assert Plan.read(tmp_path) == plan
    assert plan.config(plan.settings[1]).read_text() == TEXTS[1]


@pytest.mark.parametrize(
    "change", [{"count": 30}, {"chunk": 3}, {"tasks": 9}, {"first": 0}, {"digest": "0"}, {"x": 1}]
)
def test_an_edited_plan_is_refused(tmp_path, change):
    plan_in(tmp_path).write(TEXTS)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"plan\.json was edited after it was written"):
        Plan.read(tmp_path)


def test_a_plan_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"no plan\.json in .*`robustguide submit` writes one"):
        Plan.read(tmp_path)
    for text in ("{", "[]", '{"settings": []}'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(ValueError, match=r"Cannot read .*plan\.json"):
            Plan.read(tmp_path)


def test_an_edited_configuration_is_refused(tmp_path):
    plan = plan_in(tmp_path)
    plan.write(TEXTS)
    path = tmp_path / "settings/one.yaml"
    path.write_text("a: 3\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"one\.yaml is not what it was .*another --folder"):
            plan.config(plan.settings[0])
        path.unlink(missing_ok=True)


def test_missing_are_the_tasks_with_a_chunk_that_is_not_there(tmp_path):
    plan = plan_in(tmp_path)
    for unit in plan.of_task(0) + plan.of_task(2)[:1]:
        unit.folder.mkdir(parents=True)
        (unit.folder / "part.json").write_text("{}")
    assert plan.missing() == [1, 2]


def test_sweeps_are_all_combinations():
    assert sweep([]) == [("all", ())]
    found = dict(sweep(["model.guidance.robust.scale=0.5,1", "--seed_everything=3,4"]))
    assert list(found) == [
        "scale=0.5_seed_everything=3",
        "scale=0.5_seed_everything=4",
        "scale=1_seed_everything=3",
        "scale=1_seed_everything=4",
    ]
    assert found["scale=1_seed_everything=3"] == (
        "model.guidance.robust.scale=1",
        "seed_everything=3",
    )
    assert sweep(["a.path=runs/x/y.pt"])[0][0] == "path=runs-x-y.pt"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scale"], "expected KEY=VALUE,VALUE"),
        (["scale="], "expected KEY=VALUE,VALUE"),
        (["scale=1,,2"], "expected KEY=VALUE,VALUE"),
        (["scale=1,2,1"], "gives scale=1 twice"),
        (["data.first=0,5"], "data.first is set by --first"),
        (["trainer.default_root_dir=a,b"], "set by --folder"),
    ],
)
def test_wrong_sweeps(words, said):
    with pytest.raises(ValueError, match=said):
        sweep(words)


def test_chunks_are_whole_batches():
    assert chunk_of(50_000, 64, 50, None) == 200  # four a task: 195 images, as batches 4
    assert chunk_of(10, 64, 50, None) == 50
    assert chunk_of(1000, 2, 50, 150) == 150
    for wanted in (0, -50, 75):
        with pytest.raises(ValueError, match=r"multiple of data\.batch_size, 50"):
            chunk_of(1000, 2, 50, wanted)


def test_arrays_are_of_generations():
    text = "data: {class_path: robustguide.data.SeedData, init_args: {batch_size: 7}}"
    assert batch_size_of(text) == 7
    for other in ("data: {class_path: robustguide.data.Images}", "data: null"):
        with pytest.raises(ValueError, match="robustguide submit fit CONFIG"):
            batch_size_of(other)


def test_numbers_as_slurm_writes_them():
    assert list(ranges([0, 1, 2, 5, 7, 8])) == ["0-2", "5", "7-8"]
    assert list(ranges([4])) == ["4"] and list(ranges([])) == []
