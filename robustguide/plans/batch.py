"""Batch scripts for Slurm: copies of those in `slurm/`, filled in for a plan."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import robustguide
from robustguide.files import whole

HOME = Path(robustguide.__file__).parents[1] / "slurm"
SAMPLE, MERGE, FIT = "sample_array.sbatch", "merge.sbatch", "fit.sbatch"


def template(name: str, folder: Path | None = None) -> str:
    """A script as it is shipped, or as a user keeps it in a folder.

    Raises:
        FileNotFoundError: It is not there.
    """
    path = (folder or HOME) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"The batch script {path} is not there; give --templates the folder slurm/ of a "
            "clone of this repository."
        )
    return path.read_text()


def filled(
    text: str,
    options: Mapping[str, str | None],
    modules: Sequence[str] = (),
    container: str | None = None,
) -> str:
    """A script with other lines of `#SBATCH`, modules to load, and a container.

    Args:
        text: Of a script; it has a line `set -euo pipefail`, and calls `${CONTAINER:-}`.
        options: Of sbatch, by their long names; null takes a line out.
        modules: For `module load`.
        container: Words that start a command inside of one.
    """
    for name, value in options.items():
        text = with_option(text, name, value)
    added = "".join(f"module load {shlex.quote(module)}\n" for module in modules)
    if container:
        added += f"export CONTAINER={shlex.quote(container)}\n"
    return text.replace("set -euo pipefail\n", f"set -euo pipefail\n{added}", 1)


def with_option(text: str, name: str, value: str | None) -> str:
    """A script with one option of sbatch set anew, before the others where it was not there."""
    new = [] if value is None else [f"#SBATCH --{name}={value}".removesuffix("=")]
    lines = text.split("\n")
    old = re.compile(rf"#SBATCH --{re.escape(name)}(=|\s|$)")
    places = [place for place, line in enumerate(lines) if old.match(line)]
    first = next(place for place, line in enumerate(lines) if line.startswith("#SBATCH"))
    place = places[0] if places else first
    kept = [line for each, line in enumerate(lines) if each not in places]
    return "\n".join(kept[:place] + new + kept[place:])


def write(path: Path, text: str) -> None:
    """Writes a script."""
    with whole(path) as part:
        part.write_text(text)
        part.chmod(0o755)


def sbatch(script: Path, arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The command that sends a script."""
    return ["sbatch", "--parsable", *options, str(script), *arguments]
