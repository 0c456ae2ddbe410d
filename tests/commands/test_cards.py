"""The commands about published checkpoints, as a user types them."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from robustguide.__main__ import main
from robustguide.cards import cards


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder of checkpoints, outside any job."""
    monkeypatch.setenv("ROBUSTGUIDE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path / "checkpoints"


def test_all_cards_are_listed(here, capsys):
    main(["cards"])
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines[1:] if line and " cards; " not in line]
    assert listed == list(cards())
    assert lines[-1] == f"{len(cards())} cards; a name shows one. Files are looked for in {here}."


def test_what_is_here_is_marked(here, capsys):
    here.mkdir()
    (here / "64x64_diffusion.pt").touch()
    (here / "adm-classifier64.safetensors").touch()
    main(["cards", "64"])
    lines = {
        line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:-2]
    }
    assert lines["adm-imagenet64"] == "pt"
    assert lines["adm-classifier64"] == "safetensors"
    assert lines["adm-upsampler64-256"] == "-"
    assert "adm-imagenet128" not in lines


def test_one_card_is_shown_whole(capsys):
    main(["cards", "adm-imagenet256"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["file"] == "256x256_diffusion.pt"
    assert shown["specification"] == cards()["adm-imagenet256"].specification
    assert shown["present"] is None
    main(["cards", "adm-imagenet256", "--json"])
    (found,) = json.loads(capsys.readouterr().out)  # not its unconditional neighbour too
    assert found == shown
    assert shown["published"]["adm256"].startswith("fid 4.59, sfid 5.25")


def test_an_unknown_name_is_told():
    with pytest.raises(ValueError, match="did you mean adm-classifier64"):
        main(["cards", "adm-clasifier64"])


@pytest.mark.parametrize("command", ["cards", "convert", "fetch"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"\n  robustguide {command} " in capsys.readouterr().out


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path):
    """A server with two files."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name in ("64x64_diffusion.pt", "64x64_classifier.pt"):
        (folder / name).write_bytes(name.encode() * 1000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_are_fetched_to_the_folder(here, mirror, capsys):
    main(["fetch", "adm-imagenet64", "adm-classifier64", "--mirror", mirror])
    assert sorted(path.name for path in here.iterdir()) == [
        "64x64_classifier.pt", "64x64_diffusion.pt",
    ]  # fmt: skip
    assert "Terms of the weights: MIT." in capsys.readouterr().out


def test_a_wrong_name_costs_no_download(here, mirror):
    with pytest.raises(ValueError, match="There is no card"):
        main(["fetch", "adm-imagenet64", "mine", "--mirror", mirror])
    assert not here.exists()


def test_a_job_is_told_to_leave_it(mirror, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    with pytest.raises(ValueError, match="on a login node first"):
        main(["fetch", "adm-imagenet64", "--mirror", mirror])


def test_the_process_ends_with_one_message(here):
    """A damaged file: code 1, one line, no traceback."""
    here.mkdir()
    (here / "bad.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR.")
    words = [
        sys.executable,
        "-m",
        "robustguide",
        "convert",
        "adm-imagenet64",
        str(here / "bad.pt"),
    ]
    run = subprocess.run(words, capture_output=True, text=True, env={**os.environ})
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert str(here / "bad.pt") in run.stderr.splitlines()[0]
    assert sorted(path.name for path in here.iterdir()) == ["bad.pt"]


def test_a_network_of_ones_own_is_a_card_too(monkeypatch, capsys):
    """Nothing but data makes a card."""
    own = replace(cards()["adm-imagenet64"], name="own", file="own.pt", bytes=None)
    monkeypatch.setitem(cards(), "own", own)
    main(["cards", "own"])
    assert yaml.safe_load(capsys.readouterr().out)["file"] == "own.pt"
