"""Shards elsewhere, and shards that go missing or are cut while they are read."""

import http.server
import json
import threading
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import tiny
import torch
from lightning import Callback

from robustguide.data import DataError, Digits, Manifest, ShardImages, write_shards
from robustguide.data.manifest import Shard
from robustguide.data.reading import IN_A_ROW, Patience


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """1078 training images in 11 shards, 359 to test with in 4."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(Digits(), str(folder), per_shard=100)
    return folder


@pytest.fixture
def copy(shards, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def renamed(folder, name):
    """Writes a manifest whose shards have other names."""
    path = folder / "manifest.json"
    plain = json.loads(path.read_text())
    for entries in plain["shards"].values():
        for entry in entries:
            entry["file"] = name(entry["file"])
    path.write_text(json.dumps(plain))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files; of what is in `cut`, it sends half as often as that says."""

    cut: ClassVar[dict[str, int]] = {}

    def log_message(self, *_):
        pass

    def copyfile(self, source, output):
        name = Path(self.path).name
        if self.cut.get(name, 0) > 0:
            self.cut[name] -= 1
            content = source.read()
            output.write(content[: len(content) // 2])
        else:
            super().copyfile(source, output)


@pytest.fixture
def server():
    """Serves a folder; gives its URL."""
    running = []

    def serve(folder):
        handler = partial(Quiet, directory=str(folder))
        running.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield serve
    Quiet.cut = {}
    for each in running:
        each.shutdown()
        each.server_close()


def everything(data):
    """All test images, and three training batches."""
    test = list(data.test_dataloader())
    train = [batch for batch, _ in zip(data.train_dataloader(), range(3), strict=False)]
    return [torch.cat(parts) for parts in zip(*test, *train, strict=False)]


@pytest.mark.parametrize("way", ["url", "shards by url", "pipe"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_elsewhere_are_those_of_the_folder(shards, copy, server, way, num_workers):
    root = str(copy)
    if way == "url":
        root = server(shards)
    elif way == "shards by url":
        url = server(shards)
        renamed(copy, lambda file: f"{url}/{file}")
    else:
        renamed(copy, lambda file: f"pipe:cat {shards}/{file}")
    if way != "url":
        for path in copy.glob("*.tar"):
            path.unlink()
    options = {"batch_size": 50, "eval_batch_size": 90, "num_workers": num_workers}
    found, expected = (everything(ShardImages(each, **options)) for each in (root, str(shards)))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_what_is_not_there_is_named(server, tmp_path):
    url = server(tmp_path)
    with pytest.raises(DataError, match=f"no manifest.json in {url}.*index_shards"):
        ShardImages(url)


def test_a_manifest_from_elsewhere_runs_no_commands(copy, server):
    renamed(copy, lambda file: "pipe:touch /tmp/never; cat")
    with pytest.raises(DataError, match=r"names the command 'pipe:touch.*Copy it there if"):
        ShardImages(server(copy))


def test_a_command_that_fails_is_named(copy):
    renamed(copy, lambda file: f"pipe:head -c 1000 {copy}/{file}; exit 3")
    data = ShardImages(str(copy), retries=0)
    with pytest.raises(DataError, match=r"Cannot read the shard pipe:head .*test-000000.tar"):
        list(data.test_dataloader())


@pytest.mark.filterwarnings("ignore:.*It was retried; results.json counts this")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_transfer_that_breaks_off_is_taken_up_again(shards, server, num_workers):
    """No sample is lost and none comes twice, where samples had been handed out before."""
    Quiet.cut = {"test-000001.tar": 2, "test-000003.tar": 1}
    options = {"eval_batch_size": 30, "num_workers": num_workers, "retry_pause": 0.001}
    url = server(shards)
    data, local = ShardImages(url, **options), ShardImages(str(shards), **options)
    pairs = zip(data.test_dataloader(), local.test_dataloader(), strict=True)
    for one, other in pairs:
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    counts = {Path(name).name: facts["retried"] for name, facts in data.bad_shards.items()}
    assert num_workers or counts == {"test-000001.tar": 2, "test-000003.tar": 1}
    assert set(counts) <= {"test-000001.tar", "test-000003.tar"} and counts


def test_a_shard_cut_between_samples_is_noticed(copy):
    """Such a tar file has a proper end; only the manifest knows better."""
    path = copy / "train-000004.tar"
    content = path.read_bytes()
    place = content.index(b"cls", len(content) // 2)
    path.write_bytes(content[: (place // 512 + 2) * 512] + bytes(1024))
    (shard,) = (s for s in Manifest.read(copy).shards["train"] if s.path.name == path.name)
    keys = []
    with pytest.raises(DataError, match=r"fewer samples than the 100 in the .* tried 3 times"):
        for raw in Patience(2, 0.0).read(shard):
            keys.append(raw["__key__"])
    assert 40 < len(keys) == len(set(keys)) < 60


@pytest.mark.parametrize("number", [2, 40])
def test_nothing_but_bad_shards_is_an_end(number):
    """And not an endless loop."""
    all_bad = [Shard(Path(f"/nowhere/{i}.tar"), 5) for i in range(number)]
    patience = Patience(0, 0.0, "skip")
    count = min(IN_A_ROW, number)
    with pytest.raises(DataError, match=rf"^{count} shards in a row cannot be read.*No such file"):
        next(patience.read_endlessly(iter(all_bad * 2), number))
    assert len(patience.taken()) == count and not patience.taken()


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"retry_pause": -0.5}])
def test_settings_are_checked(shards, wrong):
    with pytest.raises(ValueError, match="must be 0 or more"):
        ShardImages(str(shards), **wrong)


CUT, GONE = [{f"train-{i:06d}.tar" for i in numbers} for numbers in ((0, 2, 4), (6, 8, 10))]


class Damage(Callback):
    """Cuts some shards and deletes others in the middle of an epoch."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2 and trainer.is_global_zero:
            for name in CUT:
                (self.folder / name).write_bytes((self.folder / name).read_bytes()[:20_000])
            for name in GONE:
                (self.folder / name).unlink()
        trainer.strategy.barrier()


def damaged(copy, **data):
    options = {"batch_size": 25, "buffer": 10, "retries": 1, "retry_pause": 0.001}
    damage = {"class_path": f"{__name__}.Damage", "init_args": {"folder": str(copy)}}
    images = tiny.spec("data.ShardImages", root=str(copy), **options | data)
    trainer = {"max_steps": 50, "limit_val_batches": 0, "callbacks": [damage]}
    return tiny.merged(tiny.classification(), {"data": images, "trainer": trainer})


@pytest.mark.filterwarnings("ignore:.*It was (retried|skipped); results.json counts this")
@pytest.mark.filterwarnings("ignore:.*fork", "ignore:Total length of")
@pytest.mark.parametrize("processes, num_workers", [(1, 0), (2, 1)])
def test_bad_shards_are_left_out_and_counted(copy, tmp_path, json_of, processes, num_workers):
    """Also by worker processes, and by another process of the training."""
    config = damaged(copy, on_bad_shard="skip", num_workers=num_workers)
    if processes == 2:
        config = tiny.merged(config, {"trainer": {"devices": 2, "strategy": "ddp_fork"}})
    tiny.run(tmp_path / "run", "fit", config)
    results = json_of(tmp_path / "run")
    found = {Path(name).name: facts for name, facts in results["bad_shards"].items()}
    assert found.keys() & CUT and found.keys() & GONE and found.keys() <= CUT | GONE
    for name, facts in found.items():
        # a shard is tried once again the first time that a reader skips it, and never after
        assert 1 <= facts["retried"] <= facts["skipped"]
        assert ("No such file" in facts["error"]) == (name in GONE)
    assert results["cost"]["steps"] == 50


def test_a_bad_shard_stops_training_by_default(copy, tmp_path):
    config = damaged(copy, num_workers=1)
    message = r"Cannot read the shard .*train-00000\d.tar.*It was tried 2 times"
    with pytest.raises(DataError, match=message):
        tiny.run(tmp_path / "run", "fit", config)


def test_evaluation_always_stops(copy):
    data = ShardImages(str(copy), on_bad_shard="skip", retries=1, retry_pause=0.001)
    (copy / "test-000002.tar").unlink()
    with pytest.raises(DataError, match=r"test-000002.tar: No such file.*It was tried 2 times"):
        list(data.test_dataloader())
