"""Features by blocks of rows: in memory, in a file, and some rows of either."""

import pytest
import torch

from robustguide.metrics.tables import Chosen, Filed, Held

ROWS = torch.arange(24, dtype=torch.float32).reshape(12, 2)


@pytest.fixture(params=["memory", "file"])
def table(request, tmp_path):
    if request.param == "memory":
        return Held(ROWS)
    (tmp_path / "rows").write_bytes(b"head" + ROWS.numpy().tobytes())
    return Filed(tmp_path / "rows", 12, 2, offset=4)


def test_blocks_are_the_rows(table):
    assert (len(table), table.dim) == (12, 2)
    assert torch.equal(table.block(3, 7), ROWS[3:7])
    assert torch.equal(table.block(10, 99), ROWS[10:])
    assert [len(block) for block in table.blocks(5)] == [5, 5, 2]
    assert torch.equal(torch.cat(list(table.blocks(5))), ROWS)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_chosen_rows_are_those(table, block, monkeypatch):
    monkeypatch.setattr("robustguide.metrics.tables.BLOCK", block)
    places = [0, 4, 5, 11]
    chosen = Chosen(table, places)
    assert torch.equal(chosen.block(0, 4), ROWS[places])
    assert torch.equal(chosen.block(1, 3), ROWS[[4, 5]])
    assert torch.equal(Chosen(chosen, [1, 3]).block(0, 2), ROWS[[4, 11]])
    for none in (Chosen(table, []).block(0, 5), chosen.block(2, 2)):
        assert none.shape == (0, 2)


def test_a_file_that_was_cut_short_is_refused(tmp_path):
    (tmp_path / "rows").write_bytes(ROWS.numpy().tobytes()[:-1])
    with pytest.raises(ValueError, match="has 95 bytes, 12 rows of 2 features need 96"):
        Filed(tmp_path / "rows", 12, 2)
