"""`robustguide repack`, through the door of the command line."""

import pytest
import sampled
from rich.console import Console

from robustguide.__main__ import main
from robustguide.commands import repack
from robustguide.data.generated import open_samples, write_samples


def test_samples_in_all_forms(tmp_path, capsys):
    write_samples(sampled.Held(), tmp_path / "a")
    for source, *words in (
        ("a", "b.npz"),
        ("b.npz", "c.tar"),
        ("c.tar", "d", "--kind=shards", "--per-shard=2"),
        ("d/*.tar", "e/"),
    ):
        assert main(["repack", f"{tmp_path}/{source}", f"{tmp_path}/{words[0]}", *words[1:]]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line == f"{tmp_path}/{words[0]}: 7 samples of 5 x 6 x 3, 3 classes"
        sampled.assert_same(open_samples(tmp_path / words[0]), sampled.Held())
    assert len(list((tmp_path / "d").glob("*.tar"))) == 4
    files = [sorted((tmp_path / name / "images").iterdir()) for name in ("a", "e")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_nothing_is_overwritten(tmp_path):
    write_samples(sampled.Held(), tmp_path / "a")
    write_samples(sampled.Held(3), tmp_path / "b.npz")
    with pytest.raises(FileExistsError, match=r"b\.npz is there already; name a new one"):
        main(["repack", f"{tmp_path}/a", f"{tmp_path}/b.npz"])
    assert open_samples(tmp_path / "b.npz").count == 3


def test_a_terminal_sees_a_bar(tmp_path, monkeypatch):
    consoles = []

    def console():
        consoles.append(Console(force_terminal=True, record=True, width=100))
        return consoles[-1]

    monkeypatch.setattr(repack, "Console", console)
    write_samples(sampled.Held(), tmp_path / "a")
    main(["repack", f"{tmp_path}/a", f"{tmp_path}/b.npz"])
    assert "7/7" in consoles[0].export_text()


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["repack", "--help"])
    shown = capsys.readouterr().out
    assert not stopped.value.code and "robustguide repack runs/images samples.npz" in shown
