"""Batch scripts that are filled in."""

import subprocess

import pytest

from robustguide.plans.batch import FIT, MERGE, SAMPLE, filled, template


def directives(text):
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


@pytest.mark.parametrize("name", [FIT, MERGE, SAMPLE])
def test_shipped_scripts_are_filled_in_and_stay_scripts(name, tmp_path):
    text = template(name)
    assert filled(text, {}) == text
    options = {"account": "abc", "time": "00:10:00", "exclusive": ""}
    found = filled(text, options, ["cuda/12.4", "a b"], "apptainer exec --nv 'my image.sif'")
    lines = directives(found)
    assert lines.count("#SBATCH --account=abc") == lines.count("#SBATCH --time=00:10:00") == 1
    assert sum("--time" in line for line in lines) == 1 and "#SBATCH --exclusive" in lines
    assert "module load cuda/12.4\nmodule load 'a b'\n" in found
    path = tmp_path / name
    path.write_text(found)
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    said = [line for line in found.splitlines() if line.startswith("export CONTAINER=")]
    shown = subprocess.run(
        ["bash", "-c", f'{said[0]}; echo "$CONTAINER"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "apptainer exec --nv 'my image.sif'"
    head, body = found.split("set -euo pipefail\n")
    assert "#SBATCH" not in body and "module load" not in head


def test_an_option_can_be_taken_out():
    text = "#!/bin/bash\n#SBATCH --nodes=1\n#SBATCH --signal=USR1@90\nset -euo pipefail\n"
    assert directives(filled(text, {"signal": None})) == ["#SBATCH --nodes=1"]
    assert directives(filled(text, {"node": "x"})) == [
        "#SBATCH --node=x",
        "#SBATCH --nodes=1",
        "#SBATCH --signal=USR1@90",
    ]


def test_templates_of_a_user(tmp_path):
    (tmp_path / MERGE).write_text("mine")
    assert template(MERGE, tmp_path) == "mine"
    with pytest.raises(FileNotFoundError, match=r"fit\.sbatch is not there; give --templates"):
        template(FIT, tmp_path)
