"""`robustguide submit`, `work`, `status` and `merge`, without Slurm."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import array_runs
import pytest
import tiny
import torch
import yaml
from permissions import no_administrator, read_only_folder

from robustguide.__main__ import main
from robustguide.data.generated import open_samples
from robustguide.plans.submission import Wanted, planned, written

GONE = (
    "model.denoiser={class_path: robustguide.checkpoints.load_denoiser, "
    "init_args: {path: gone.safetensors}}"
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "sampling.yaml"
    path.write_text(yaml.safe_dump(array_runs.measured()))
    return str(path)


def submit(tmp_path, *words):
    return main(["submit", *words, "--folder", str(tmp_path / "array")])


def test_what_would_be_sent_is_printed_and_nothing_written(config, tmp_path, capsys):
    words = ["--num-samples=100", "--array=4%2", "--time=00:30:00", "--gres=gpu:1", "--print"]
    more = ["--slurm", "mem=8G", "constraint=a100", "--modules", "cuda", "--account", "abc"]
    assert submit(tmp_path, config, *words, *more) == 0
    said = capsys.readouterr().out
    sample, merge = said.split("# --- ")[1:3]
    for line in ("time=00:30:00", "gres=gpu:1", "mem=8G", "constraint=a100", "account=abc"):
        assert f"#SBATCH --{line}\n" in sample
    assert "#SBATCH --account=abc\n" in merge and "module load cuda" in merge
    assert "gres" not in merge
    assert "4 tasks; then" in said and "chunks of 8" in said
    folder = tmp_path / "array"
    commands = [line for line in said.splitlines() if line.startswith("sbatch --parsable")]
    assert commands[0].endswith(f"--array=0-3%2 --output={folder}/logs/%A_%a.out "
                                f"{folder}/sample_array.sbatch {folder}")  # fmt: skip
    assert "--dependency=afterany:JOB" in commands[1] and "merge.sbatch" in commands[1]
    assert not folder.exists()


def test_a_training_names_nodes_and_devices_once(tmp_path, capsys):
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(tiny.classification()))
    words = ["--set", "trainer.devices=4", "trainer.num_nodes=2", "trainer.accelerator=gpu"]
    sweep = ["--sweep", "model.optimizer.lr=0.1,0.01", "--print"]
    assert submit(tmp_path, "fit", str(path), *words, *sweep) == 0
    said = capsys.readouterr().out
    for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4"):
        assert len(re.findall(rf"^#SBATCH --{line}$", said, re.M)) == 1, line
    assert "--array=0-1 " in said and "fit.sbatch" in said
    with pytest.raises(ValueError, match=r"devices is 'auto'; .*--set trainer\.devices=4"):
        submit(tmp_path, "fit", str(path), "--set", "trainer.devices=auto", "--print")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"--num-samples is 0"),
        (["--num-samples=8", "--array=0-3"], r"--array is '0-3'; expected a number of tasks"),
        (["--num-samples=8", "--chunk=6"], r"multiple of data\.batch_size, 4"),
        (["--num-samples=8", "--set", "data.count=3"], "data.count is set by --num-samples"),
        (["--num-samples=8", "--local=0"], "--local is 0"),
        (["--num-samples=8", "--templates=/nowhere"], r"/nowhere/sample_array\.sbatch is not"),
        (["--num-samples=8", "--set", GONE], r"gone\.safetensors is not there"),
    ],
)  # fmt: skip
def test_wrong_input(config, tmp_path, words, said):
    with pytest.raises((ValueError, OSError), match=said):
        submit(tmp_path, config, *words)


def test_chunks_hold_whole_batches_of_every_setting(config, tmp_path, capsys):
    words = ["--num-samples=100", "--array=2", "--sweep", "data.batch_size=4,6"]
    assert submit(tmp_path, config, *words, "--print") == 0
    assert "chunks of 24" in capsys.readouterr().out  # 12.5 images, in multiples of 12
    with pytest.raises(ValueError, match=r"--chunk is 16; expected a multiple of .*, 12"):
        submit(tmp_path, config, *words, "--chunk=16")


def test_a_configuration_that_is_wrong(config, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        submit(tmp_path, config, "--num-samples=8", "--set", "model.wached_steps=3")
    assert "did you mean" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml is not there"):
        submit(tmp_path, "nothing.yaml", "--num-samples=8")
    with pytest.raises(ValueError, match="Name a configuration"):
        submit(tmp_path, "fit")


@pytest.mark.check
def test_a_sweep_here_is_the_runs_one_by_one(config, tmp_path, capsys):
    """Two settings in three tasks; then what was lost is made again, and nothing else."""
    folder = tmp_path / "array"
    words = ["--num-samples=20", "--array=3", "--chunk=8", "--local=2", "--first=8"]
    sweep = ["--sweep", "model.sampler.clip=1.0,2.0"]
    assert submit(tmp_path, config, *words, *sweep) == 0
    whole = {}
    for clip in ("1.0", "2.0"):
        run = tmp_path / f"whole{clip}"
        options = ("--data.count=20", "--data.first=8", f"--model.sampler.clip={clip}")
        tiny.run(run, "test", array_runs.measured(), *options)
        whole[clip] = array_runs.found(run)
        array_runs.same(array_runs.found(folder / f"clip={clip}"), whole[clip])
    assert whole["1.0"]["metrics"] != whole["2.0"]["metrics"]
    assert json.loads((folder / "merged.json").read_text()).keys() == {"clip=1.0", "clip=2.0"}
    assert (folder / "merged.md").read_text().count("| clip=") == 2
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0 and "3 done" in capsys.readouterr().out

    lost = folder / "clip=1.0/parts/000000000016"
    kept = (folder / "clip=1.0/parts/000000000008/part.json").stat().st_mtime_ns
    shutil.rmtree(lost)
    assert main(["status", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "To send again: --array=0" in said and "12 of 20 images" in said
    assert main(["merge", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "1 of 6 units" in said and "clip=1.0/000000000016" in said and "--array=0 " in said
    assert submit(tmp_path, config, *words, *sweep) == 0
    assert (folder / "clip=1.0/parts/000000000008/part.json").stat().st_mtime_ns == kept
    array_runs.same(array_runs.found(folder / "clip=1.0"), whole["1.0"])
    with pytest.raises(ValueError, match=r"holds another plan, which differs in chunk"):
        submit(tmp_path, config, *words, *sweep, "--chunk=4")
    with pytest.raises(ValueError, match="no task 3 in"):
        main(["work", str(folder), "3"])


def killed(folder, task, pattern):
    """Starts a task in a process of its own, and kills that when there is such a file."""
    command = [sys.executable, "-m", "robustguide", "work", str(folder), str(task)]
    with subprocess.Popen(command, start_new_session=True) as process:
        end = time.monotonic() + 90
        while not [*folder.glob(pattern)]:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.check
def test_images_do_not_depend_on_who_makes_them(config, tmp_path):
    """One task after another, or five by three processes: the same bytes."""
    found = []
    for tasks, workers in ((1, 1), (5, 3)):
        folder = tmp_path / f"of{tasks}"
        words = ["--num-samples=20", f"--array={tasks}", f"--local={workers}", "--chunk=4"]
        assert main(["submit", config, *words, f"--folder={folder}"]) == 0
        (batch,) = open_samples(folder / "all/samples").batches(100)
        assert batch.index.tolist() == list(range(20))
        found.append(batch)
    assert torch.equal(found[0].pixels, found[1].pixels)
    assert torch.equal(found[0].y, found[1].y)


@pytest.mark.check
def test_trainings_of_a_sweep_go_on_where_they_were_killed(tmp_path, capsys):
    """Two learning rates; whoever does the rest, the ends are those of unbroken trainings."""
    path, folder = tmp_path / "fit.yaml", tmp_path / "array"
    trainer = {"max_steps": 400, "callbacks": [tiny.saving(20)]}
    path.write_text(yaml.safe_dump(tiny.merged(tiny.classification(), {"trainer": trainer})))
    sweep = "model.optimizer.lr=0.01,0.02"
    words = ["submit", "fit", str(path), "--sweep", sweep, "--local=1"]
    assert main([*words, f"--folder={tmp_path / 'unbroken'}"]) == 0
    table = (tmp_path / "unbroken/merged.md").read_text()
    assert table.count("| lr=") == 2 and "accuracy" in table

    written(*planned(Wanted("fit", (str(path),), folder, sweep=(sweep,))))
    for step in (20, 200):
        killed(folder, 1, f"lr=0.02/checkpoints/*step={step}.ckpt")
    assert main(["status", str(folder)]) == 1
    assert main([*words, f"--folder={folder}"]) == 0
    for setting in ("lr=0.01", "lr=0.02"):
        ours, theirs = (
            (place / setting / "classifier.safetensors").read_bytes()
            for place in (folder, tmp_path / "unbroken")
        )
        assert ours == theirs
    resumed = json.loads((folder / "lr=0.02/results.json").read_text())["run"]["resumed"]
    assert 200 <= resumed["step"] < 400 and resumed["data"].startswith("exact")
    capsys.readouterr()
    main(["work", str(folder), "1"])
    assert "lr=0.02: is there" in capsys.readouterr().out


@pytest.mark.check
def test_a_full_disk_ends_a_task_and_leaves_no_half_chunk(config, tmp_path):
    """No file grows beyond six kilobytes; later there is room, and the task goes on."""
    folder = tmp_path / "array"
    words = ["submit", config, "--num-samples=8", "--chunk=4", "--local=1"]
    assert main([*words, f"--folder={tmp_path / 'whole'}"]) == 0
    written(*planned(Wanted("test", (config,), folder, 8, chunk=4)))
    command = f"ulimit -f 6; exec {sys.executable} -m robustguide work {folder} 0"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("all/parts/*")) and not list(folder.glob("all/parts/.*"))
    assert main(["status", str(folder)]) == 1
    assert main([*words, f"--folder={folder}"]) == 0
    array_runs.same(array_runs.found(folder / "all"), array_runs.found(tmp_path / "whole/all"))


def test_a_folder_that_is_read_only_is_named(config):
    plan, texts = planned(Wanted("test", (config,), Path("nowhere"), 8))
    with read_only_folder() as folder:
        with no_administrator(), pytest.raises(PermissionError, match=str(folder)):
            written(replace(plan, folder=folder / "array"), texts)
        assert not list(folder.iterdir())


@pytest.mark.check
def test_a_chunk_that_fails_is_told_and_its_task_fails(config, tmp_path, capsys):
    """A level that the sampler has not is only seen when a chunk is made."""
    words = ["--num-samples=8", "--array=2", "--local=2", "--set", "model.watched_steps=[1000.0]"]
    assert submit(tmp_path, config, *words) == 1
    said = capsys.readouterr().err
    assert "task 0: " in said and "task 1: " in said and "watched_steps must be" in said
    assert main(["status", str(tmp_path / "array")]) == 1
    said = capsys.readouterr().out
    assert "2 failed" in said and "--array=0-1" in said and "0 of 8 images" in said
    assert not list(tmp_path.glob("array/all/parts/*")), "a chunk that failed left something"
    assert not list(tmp_path.glob("array/all/parts/.*"))
