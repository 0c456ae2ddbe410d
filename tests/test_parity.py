"""docs/parity.md says what its command writes."""

import subprocess
import sys
from pathlib import Path

import parity
import pytest

DOCUMENT = Path(__file__).parents[1] / "docs" / "parity.md"


def test_no_row_is_beyond_its_tolerance():
    rows = parity.rows_of(DOCUMENT.read_text())
    assert len(rows) > 400
    assert max(rows.values()) < 1


def test_every_kind_of_network_is_among_the_rows():
    goldens = {name for name, _ in parity.rows_of(DOCUMENT.read_text())}
    for family in ("gd_unet", "gd_classifier", "kawar", "edm_dhariwal", "edm_song", "edm_vp"):
        assert any(name.startswith(family) for name in goldens), family
    expected = {"edm_ve_song_ncsnpp", "edm_iddpm_dhariwal", "edm2_main", "edm2_samplers", "dit_a"}
    expected |= {
        "edm_pickle",
        "edm2_pickle",
        "robustness_cifar_style",
        "edm_samplers",
        "k_samplers",
    }
    assert expected <= goldens


@pytest.mark.check
def test_the_command_writes_the_document(tmp_path):
    """The same rows, each within its tolerance on this machine too."""
    copy = tmp_path / "parity.md"
    copy.write_text(DOCUMENT.read_text())
    words = [sys.executable, parity.__file__, copy]
    run = subprocess.run(words, capture_output=True, text=True, cwd=DOCUMENT.parents[1])
    assert run.returncode == 0, run.stdout[-3000:]
    written, documented = copy.read_text(), DOCUMENT.read_text()
    rows = parity.rows_of(written)
    assert sorted(rows) == sorted(parity.rows_of(documented))
    assert max(rows.values()) < 1
    for mark in ("unseen", "files"):
        end = f"<!-- end of {mark} -->"
        assert (
            written.partition(f"<!-- {mark} -->")[2].partition(end)[0]
            == documented.partition(f"<!-- {mark} -->")[2].partition(end)[0]
        )
