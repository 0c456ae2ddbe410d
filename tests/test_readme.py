"""Every command of README.md, run in order in one folder, and what it prints compared.

The folder has the configurations, the Makefile and the present environment as its `.venv`, marked
as installed: so `make demo` is the real one without the installation. `make test` is what runs
the tests, so it is not run by one, and `make docs` has a test of its own; `make --dry-run` says
what they would do. A block that starts a server or needs a cluster is listed in NOT_RUN, with what
is checked instead.

What is printed may have more lines than README.md shows. Shown lines must come in their order,
with the same words, and numbers within the tolerance that stands before the block: absolute, and
relative above 1. Times are not compared.

    python tests/test_readme.py README.md      replaces the shown lines by those printed now
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.check

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NOT_RUN = {
    "make test": "runs this",
    "make docs": "is built by tests/test_site.py",
    "tensorboard": "is a server",
    "sbatch": "needs a cluster; tests/slurm runs the scripts",
}
EXECUTED = ("bash", "console", "python")
SHOWN = ("text", "bibtex")  # bibtex is no command and has no numbers
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOLERANCE = re.compile(r"<!-- tolerance: ([\d.]+) -->\s*$")
NUMBER = re.compile(r"(?:(?<![\w.])|(?<=\.\.))[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
TIME = re.compile(r"\d+(?:\.\d+)? (?:s|it/s|s/it)(?!\w)|\d+:\d\d(?!\w)")
CELL = re.compile(r"[│┃]")


@dataclass(frozen=True)
class Block:
    """Something to run, and the lines that README.md shows below it."""

    language: str
    source: str
    shown: tuple[str, ...] = ()
    tolerance: float | None = None

    @property
    def name(self):
        return " ".join(self.source.split()[:3]).partition("(")[0]

    @property
    def is_run(self):
        return not self.source.startswith(tuple(NOT_RUN))


def blocks(text):
    """What is to be run, in order; shown lines belong to the block before them.

    A listing behind other words than a tolerance, such as a layout, is shown for itself.
    """
    found = []
    for match in FENCE.finditer(text):
        language, source = match.groups()
        if language in EXECUTED:
            found.append(Block(language, source))
            continue
        assert language in SHOWN, f"```{language} is neither run nor shown: {source[:60]}"
        if tolerance := TOLERANCE.search(text[: match.start()]):
            before = found.pop()
            assert not before.shown, f"two outputs below {before.name}"
            shown = tuple(source.splitlines())
            found.append(Block(before.language, before.source, shown, float(tolerance[1])))
    return found


def words_and_numbers(lines):
    """Of every line: its words, and its numbers; times, and a column of seconds, are words."""
    answer, column = [], None
    for line in lines:
        cells = CELL.split(line)
        if len(cells) > 1:
            if any(cell.strip() == "seconds" for cell in cells):
                column = next(i for i, cell in enumerate(cells) if cell.strip() == "seconds")
            elif column is not None and column < len(cells):
                cells[column] = NUMBER.sub("(time)", cells[column])
        plain = TIME.sub("(time)", "|".join(" ".join(cell.split()) for cell in cells))
        numbers = tuple(float(number) for number in NUMBER.findall(plain))
        answer.append((NUMBER.sub("#", plain), numbers))
    return answer


def distance(shown, printed):
    """The largest difference of two lines' numbers, relative above 1."""
    pairs = zip(shown, printed, strict=True)
    return max((abs(a - b) / max(1, abs(a)) for a, b in pairs), default=0.0)


def matched(shown, printed):
    """For every shown line the printed one of the same words that is nearest, and how near.

    Raises:
        AssertionError: For a line whose words were not printed behind the one before.
    """
    answer, first = [], 0
    said = words_and_numbers(printed)
    for line, (words, numbers) in zip(shown, words_and_numbers(shown), strict=True):
        if line.strip() == "...":
            answer.append((line, 0.0))
            continue
        rows = [row for row in range(first, len(said)) if said[row][0] == words]
        assert rows, f"not printed: {line!r}, in\n" + "\n".join(printed)
        near = [distance(numbers, said[row][1]) for row in rows]
        best = rows[near.index(min(near))]
        answer.append((printed[best], min(near)))
        first = best + 1
    return answer


def workplace(folder):
    """Makes a folder in which the commands of README.md work as in a clone."""
    for name in ("configs", "slurm", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("Makefile", "pyproject.toml"):
        (folder / name).write_text((ROOT / name).read_text())
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / "installed").touch()
    return folder


def run(block, folder):
    """What a block prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "120"}
    source = re.sub(r"^\$ ", "", block.source, flags=re.MULTILINE)
    command = ["bash", "-euo", "pipefail", "-c", source]
    if block.language == "python":
        command = [sys.executable, "-c", source]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{block.source}\nended with {done.returncode}:\n{done.stdout}"
    return done.stdout.splitlines()


ALL = blocks(README.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return workplace(tmp_path_factory.mktemp("readme"))


@pytest.mark.parametrize("block", [b for b in ALL if b.is_run], ids=lambda block: block.name)
def test_a_block_prints_what_is_shown(block, folder):
    """In order: later ones use what earlier ones left."""
    printed = run(block, folder)
    for line, off in matched(block.shown, printed):
        assert off <= block.tolerance, f"shown otherwise, by {off:.3g}: {line!r}"


def test_what_is_not_run_is_listed_and_still_exists(folder):
    left = [block for block in ALL if not block.is_run]
    starts = [next(start for start in NOT_RUN if b.source.startswith(start)) for b in left]
    assert set(starts) == set(NOT_RUN)
    assert not any(block.shown for block in left)
    printed = run(Block("bash", "make --dry-run test"), folder)
    assert any("pytest" in line for line in printed) and any("mypy" in line for line in printed)
    printed = run(Block("bash", "make --dry-run docs"), folder)
    assert any("mkdocs build --strict" in line for line in printed)


def test_the_options_of_tensorboard_are_known(folder):
    (line,) = [block.source for block in ALL if block.source.startswith("tensorboard")]
    (printed,) = run(Block("bash", f"{line.strip()} --version_tb 2>/dev/null"), folder)
    assert re.fullmatch(r"\d+\.\d+\.\d+", printed)


def test_the_comparison_notices():
    printed = ["a 1.00", "b 5 s at 2 it/s", "a 200", "│ x │ 3 │", "│ y │ seconds │", "│ z │ 7 │"]

    def off(*shown):
        return max(difference for _, difference in matched(shown, printed))

    assert off("a 1.04", "...", "a 199", "│ x │ 3 │") == pytest.approx(0.04 / 1.04)
    assert off("a 210") == pytest.approx(10 / 210)
    assert off("b 9.5 s at 30 it/s") == 0
    assert off("│ y │ seconds │", "│ z │ 99 │") == 0
    assert off("│ x │ 4 │") == pytest.approx(1 / 4)
    for shown in (["c 1.00"], ["a 1.00", "a 200", "a 200"], ["a 200", "b 5 s at 2 it/s"]):
        with pytest.raises(AssertionError, match="not printed"):
            matched(shown, printed)
    with pytest.raises(AssertionError, match="neither run nor shown"):
        blocks("```sh\nrobustguide demo\n```\n")


def test_the_tolerances_are_stated():
    """Nothing that is printed is shown without one, and they are those of the text."""
    text = README.read_text()
    found = {block.tolerance for block in ALL if block.shown}
    assert found == {0, 0.05, 0.15, 0.3}
    assert "they may differ by\n0.05," in text and "by 0.15 where intervals are shown" in text
    assert "and by 0.3 where a training loss is;" in text


def rewrite(path):
    """Replaces the shown lines of a document by those that are printed now."""
    text = path.read_text()
    with tempfile.TemporaryDirectory() as made:
        folder = workplace(Path(made))
        for block in blocks(text):
            if not block.is_run:
                continue
            print(block.name, flush=True)
            printed = run(block, folder)
            if block.shown:
                lines = [line.rstrip() for line, _ in matched(block.shown, printed)]
                old, new = "\n".join(block.shown), "\n".join(lines)
                text = text.replace(f"```text\n{old}\n```", f"```text\n{new}\n```")
    path.write_text(text)


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]))
