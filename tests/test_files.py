"""Files that are whole or not there."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from robustguide.files import whole


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_may_be_read_by_those_whom_the_umask_lets(tmp_path, umask, mode):
    """However it was written: safetensors lets its owner alone."""
    before = os.umask(umask)
    try:
        for name in ("text", "tensors"):
            with whole(tmp_path / name) as part:
                if name == "text":
                    part.write_text("text")
                else:
                    save_file({"a": torch.zeros(1)}, part)
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)} == {
        mode
    }
    assert sorted(os.listdir(tmp_path)) == ["tensors", "text"]


def test_a_folder_takes_its_name_as_it_is(tmp_path):
    with whole(tmp_path / "folder") as part:
        part.mkdir(mode=0o700)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700
