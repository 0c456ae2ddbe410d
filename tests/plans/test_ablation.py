import hashlib
import json
import multiprocessing

import long_jobs
import pytest

from robustguide.plans import Job, JobError, jobs, run_jobs
from robustguide.plans.ablation import Ablation, named

NUMBERS = {"count": 7, "first": 100}


@pytest.fixture
def files(tmp_path):
    """A base and two methods."""
    for name in ("base", "plain", "robust"):
        (tmp_path / f"{name}.yaml").write_text(f"# a comment\nmodel: {{name: {name}, 0: x}}\n")
    return tmp_path


def plan(files, *methods, **changes):
    configs = [str(files / f"{name}.yaml") for name in methods or ("plain", "robust")]
    base = (files / "base.yaml",)
    return Ablation(named(configs), base, files / "runs", **{**NUMBERS, **changes})


def finish(folder, **checkpoints):
    """What an ended run leaves."""
    document = {"run": {"checkpoints": checkpoints}, "metrics": {}, "cost": {}}
    (folder / "results.json").write_text(json.dumps(document))


def option(job, name):
    (value,) = [word.partition("=")[2] for word in job.args if word.startswith(f"--{name}=")]
    return value


def numbers(job):
    """Of the images that a run makes."""
    first, count = (int(option(job, f"data.{name}")) for name in ("first", "count"))
    return set(range(first, first + count))


def test_blocks_share_no_seed_and_methods_share_all(files):
    found = plan(files, blocks=4)
    assert found.pairs()[:3] == [("plain", 0), ("robust", 0), ("plain", 1)]
    runs = {pair: found.job(*pair) for pair in found.pairs()}
    assert len(runs) == 8 and len({job.name for job in runs.values()}) == 8
    blocks = [numbers(runs["plain", block]) for block in range(4)]
    assert blocks == [numbers(runs["robust", block]) for block in range(4)]
    assert set.union(*blocks) == set(range(100, 128)) and sum(map(len, blocks)) == 28
    folders = {option(job, "trainer.default_root_dir") for job in runs.values()}
    assert folders == {str(found.run_folder(*pair)) for pair in runs} and len(folders) == 8


def test_a_run_reads_the_base_first_and_the_changes_last(files):
    job = plan(files, changes=("model.scale=2", "--data.batch_size=3")).job("robust", 1)
    base, own = str(files / "base.yaml"), str(files / "robust.yaml")
    assert job == Job(
        "robust_block_1",
        (
            *("test", "--config", base, "--config", own),
            *("--model.scale=2", "--data.batch_size=3", "--data.first=107", "--data.count=7"),
            f"--trainer.default_root_dir={files / 'runs' / 'robust' / 'block_1'}",
        ),
    )


def test_what_has_results_is_not_run_again(files):
    found = plan(files)
    assert [job.name for job in found.missing()] == [
        found.job(*pair).name for pair in found.pairs()
    ]
    found.note()
    for method in found.methods:
        finish(found.run_folder(method, 1))
    left = [pair for pair in found.pairs() if pair[1] != 1]
    assert [job.name for job in found.missing()] == [found.job(*pair).name for pair in left]
    more = plan(files, blocks=5).missing()  # further blocks of the same seeds
    assert len(more) == 8 and {job.name[-1] for job in more} == set("0234")
    third = plan(files, "plain", "base")  # and other methods
    assert [job.name for job in third.missing()].count("base_block_1") == 1


def ended(files):
    """A plan whose runs have ended."""
    found = plan(files)
    weights = files / "net.safetensors"
    weights.write_bytes(b"weights")
    assert len(found.missing()) == 6
    assert not found.folder.exists()  # who only looks leaves nothing
    found.note()
    for pair in found.pairs():
        sha256 = hashlib.sha256(b"weights").hexdigest()
        finish(found.run_folder(*pair), **{str(weights): sha256})
    assert found.missing() == []
    return found, weights


def test_results_of_something_else_are_refused(files):
    found, weights = ended(files)
    with pytest.raises(ValueError, match=r"block_0 holds .* in options .*--data\.count=7"):
        plan(files, count=8).missing()
    with pytest.raises(ValueError, match="in options"):
        plan(files, first=0).missing()
    with pytest.raises(ValueError, match="in options"):
        plan(files, changes=("model.scale=3",)).missing()
    (files / "robust.yaml").write_text("model: {name: other, 0: x}")
    with pytest.raises(ValueError, match=rf"robust/block_0 .* in {files}/robust\.yaml; give --fo"):
        found.missing()
    (files / "robust.yaml").write_text("# another comment\nmodel:\n  0: x\n  name: robust\n")
    assert found.missing() == []
    weights.write_bytes(b"trained again")
    with pytest.raises(ValueError, match=rf"plain/block_0 .* in {weights}; .* or delete .*/plain"):
        found.missing()
    weights.unlink()
    with pytest.raises(ValueError, match=str(weights)):
        found.missing()


def test_results_of_nobody_are_refused(files):
    found, _ = ended(files)
    (found.run_folder("plain", 2) / "asked.json").unlink()
    with pytest.raises(ValueError, match="plain/block_2 holds results of a run that differed"):
        found.missing()


def test_an_unfinished_run_of_another_configuration_is_run(files):
    plan(files, count=3).note()
    found = plan(files)
    assert len(found.missing()) == 6
    found.note()
    for pair in found.pairs():
        finish(found.run_folder(*pair))
    assert found.missing() == []


def test_a_broken_file_is_left_to_its_runs(files):
    (files / "plain.yaml").write_text("model: {unclosed")
    assert len(plan(files).missing()) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 2}, "--blocks is 2; expected 3 or more"),
        ({"count": 0}, "--count is 0 and --first 100"),
        ({"first": -1}, "--count is 7 and --first -1"),
        ({"changes": ("model.scale",)}, r"'model\.scale'; expected key=value"),
        ({"changes": ("data.first=3",)}, r"data\.first is set by --first"),
        ({"changes": ("--trainer.default_root_dir=x",)}, "set by --folder"),
    ],
)
def test_plans_without_a_meaning(files, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(files, **changes)


def test_configurations_that_are_not_there_or_share_a_name(files):
    with pytest.raises(FileNotFoundError, match=r"nobody\.yaml is not there"):
        plan(files, "plain", "nobody")
    with pytest.raises(ValueError, match=r"a/x\.yaml and b/x\.yml would both be the method 'x'"):
        named(["a/x.yaml", "b/x.yml"])


def test_jobs_go_on_when_one_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "forking", lambda: multiprocessing.get_context("spawn"))
    monkeypatch.setattr(jobs, "logged", long_jobs.logged)
    todo = [Job("bad", ("fail", "badly")), Job("good", ("say", "z"))]
    shown, failures = [], {}
    seconds = run_jobs(todo, tmp_path, 1, lambda *what: shown.append(what), failures)
    assert set(seconds) == {"good"} and set(failures) == {"bad"}
    for part in ("exit code 3", str(tmp_path / "bad.log"), "fail badly"):
        assert part in str(failures["bad"])
    assert [name for name, _, _, ended in shown if ended] == ["good"]
    assert shown[-1][:2] == ("good", "say z") and "bad" in {name for name, *_ in shown}


def test_failures_are_told_by_method(files):
    failures = {f"robust_block_{block}": JobError(f"error {block}") for block in (2, 1)}
    assert plan(files).failed(failures) == {"robust": "2 of 3 blocks failed. error 1"}
    assert plan(files).failed({}) == {}
