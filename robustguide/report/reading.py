"""What run folders tell, as far as it is there and of a form that is known.

Everything is taken from `results.json` and the files beside it once, here: what is cut, of another
form or not finite becomes a note, and the sections of a report see clean data alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustguide.metrics import Reliability
from robustguide.report.runs import (
    Bins,
    Curve,
    Frames,
    Number,
    Run,
    Samples,
    arguments,
    leaf,
    mapping,
    number,
    numbers,
    whole_number,
)

RESULTS, SAMPLES, FRAMES = "results.json", "samples.safetensors", "frames.safetensors"
PARTS = ("metrics", "curves", "cost")  # that any results have
# of a number: what chance and the run make of it; all else defines what the number is
NOT_DEFINING = {
    *("value", "n", "interval", "limits", "replicates", "standard_error", "sampling_error"),
    *("resamples", "rank_deficient", "biased", "warning", "shown", "lower_is_better"),
}
T = TypeVar("T")


def find(paths: Sequence[str | Path]) -> dict[str, Path]:
    """Run folders by their names: those given, or all below a folder that is none.

    Raises:
        FileNotFoundError: When a path is not there, or no run is below it.
    """
    folders: list[Path] = []
    for given in map(Path, paths):
        if not given.is_dir():
            raise FileNotFoundError(
                f"{given} is no folder; give run folders of robustguide test, validate or fit, "
                "or a folder that holds some."
            )
        below = sorted(path.parent for path in given.rglob(RESULTS))
        alone = [given] if given in below and not is_collection(given) else []
        found = alone or [folder for folder in below if not is_collection(folder)]
        if not found:
            raise FileNotFoundError(
                f"There is no {RESULTS} in {given} or below it; a run of robustguide test, "
                "validate or fit leaves one when it ends."
            )
        folders += found
    return named(list({folder.resolve(): folder for folder in folders}.values()))


def is_collection(folder: Path) -> bool:
    """Whether its results are those of several runs below it, as a demo's are."""
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # told when it is read
    return isinstance(found, dict) and "run" not in found and {"methods", "runs"} <= found.keys()


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Each folder by the end of its path that no other has."""
    parts = [folder.resolve().parts for folder in folders]
    names = {}
    for own, folder in zip(parts, folders, strict=True):
        length = 1
        while length < len(own) and sum(o[-length:] == own[-length:] for o in parts) > 1:
            length += 1
        names["/".join(own[-length:])] = folder
    return names


def read_all(paths: Sequence[str | Path]) -> list[Run]:
    """The runs, see `find`."""
    return [read(folder, name) for name, folder in find(paths).items()]


def read(folder: Path, name: str = "") -> Run:
    """A run, whatever is left of it; what is missing is noted."""
    name = name or folder.resolve().name
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return Run(name, folder, notes=(f"{RESULTS} cannot be read ({first_line(error)}).",))
    if not isinstance(found, dict) or not isinstance(found.get("run"), dict):
        note = f"{RESULTS} does not tell what was run: of an older form, or another program's."
        return Run(name, folder, notes=(note,))
    return told(name, folder, found)


def told(name: str, folder: Path, found: Mapping[str, Any]) -> Run:
    """A run by the document that it left, and by the files beside it."""
    parts = {key: mapping(found.get(key)) for key in ("metrics", "curves", "cost", "reliability")}
    notes = [f"{RESULTS} has no {key}." for key in PARTS if not isinstance(found.get(key), dict)]
    curves = known({key: curve_of(each) for key, each in parts["curves"].items()})
    cost = known({key: number(each) for key, each in parts["cost"].items()})
    bins = known({key: bins_of(each) for key, each in parts["reliability"].items()})
    run = Run(name, folder, found["run"], curves=curves, cost=cost, reliability=bins)
    metrics = known({key: number_of(key, each, run) for key, each in parts["metrics"].items()})
    for part, kept in (("metrics", metrics), ("curves", curves), ("reliability", bins)):
        lost = sorted(parts[part].keys() - kept.keys())
        notes += [f"{key!r} in {part} is of no known form." for key in lost]
    samples, frames = samples_of(run, notes), frames_of(folder, notes)
    return replace(run, metrics=metrics, samples=samples, frames=frames, notes=tuple(notes))


def known(found: Mapping[str, T | None]) -> dict[str, T]:
    """Without what is not known."""
    return {key: value for key, value in found.items() if value is not None}


def number_of(name: str, told: Any, run: Run) -> Number | None:
    """A metric; null where it has no value that is a number or null."""
    if not isinstance(told, dict) or "value" not in told or isinstance(told["value"], bool):
        return None
    value = number(told["value"])
    if value is None and not isinstance(told["value"], str | None):
        return None
    limits = numbers(told.get("interval", told.get("limits")))
    better = told.get("lower_is_better")
    return Number(
        name,
        value,
        interval=(limits[0], limits[1]) if limits and len(limits) == 2 else None,
        n=whole_number(told.get("n")),
        shown=str(told.get("shown") or ""),
        definition=definition_of(name, told, run),
        lower_is_better=better if isinstance(better, bool) else None,
        warning=str(told.get("warning") or ""),
    )


def definition_of(name: str, told: Mapping[str, Any], run: Run) -> tuple[tuple[str, str], ...]:
    """What decides what a metric measures: its own facts, the images, the judge and the grid."""
    facts = {key: value for key, value in told.items() if key not in NOT_DEFINING}
    facts["split"] = run.split
    if "reference" in facts:  # where its file lies decides nothing
        reference = mapping(facts["reference"])
        facts["reference"] = {key: reference[key] for key in reference if key != "file"}
    else:
        facts["data"] = data_of(run)
    kind, _, judge = name.partition("/")
    if kind == "class_accuracy" and "extractor" not in facts:
        facts["judge"] = judge_of(run, judge)
    if "grid" not in facts and (grid := grid_of(name, run.curves)) is not None:
        facts["grid"] = list(grid)
    return tuple((key, text_of(key, facts[key])) for key in sorted(facts))


def data_of(run: Run) -> Any:
    """The images that were measured, without how many at a time."""
    data = arguments(run.config, "data")
    if run.is_generation:
        return {"num_classes": data.get("num_classes"), "labels": data.get("labels")}
    return {"source": data.get("source"), "limit": data.get("eval_limit")}


def judge_of(run: Run, name: str) -> str:
    """Digest of the classifier that judged by this name, or what the configuration tells of it."""
    callbacks = mapping(run.config.get("trainer")).get("callbacks")
    for callback in callbacks if isinstance(callbacks, list) else ():
        given = mapping(mapping(callback).get("init_args"))
        if leaf(mapping(callback)) == "ClassAccuracy" and (given.get("name") or "") == name:
            judge = mapping(given.get("judge"))
            path = str(mapping(judge.get("init_args")).get("path"))
            digest = mapping(run.facts.get("checkpoints")).get(path)
            return str(digest) if digest else json.dumps(judge, sort_keys=True)
    return "unknown"


def grid_of(name: str, curves: Mapping[str, Curve]) -> tuple[float, ...] | None:
    """Noise levels of the curve that a metric is the mean of, where it is one."""
    for key, curve in curves.items():
        prefix = "" if key == "classifier" else f"{key}_"
        own = name.removeprefix(prefix).removeprefix("integral_")
        if name.startswith(prefix) and own in curve.series and key != name:
            return curve.sigma
    return None


def text_of(key: str, value: Any) -> str:
    """A fact as text, on which depends whether two runs measured the same."""
    if key == "grid" and (levels := numbers(value)):
        every = ", ".join(f"{level:.6g}" for level in levels)
        return f"{len(levels)} levels: {every}"
    if isinstance(value, dict):
        inner = {each: value[each] for each in sorted(value) if value[each] is not None}
        words = ", ".join(f"{each} {text_of('', inner[each])}" for each in inner)
        if "class_path" not in inner:
            return words
        return f"{inner['class_path']} ({text_of('', inner.get('init_args') or {})})"
    if isinstance(value, str | int | float):
        return str(value)
    return json.dumps(value, sort_keys=True)


def curve_of(told: Any) -> Curve | None:
    """A curve; null where its levels or series are not what they should be."""
    sigma = numbers(mapping(told).get("sigma"))
    if not sigma:
        return None
    series = {}
    for key, values in mapping(told).items():
        if key != "sigma" and isinstance(values, list) and len(values) == len(sigma):
            series[key] = tuple(math.nan if (v := number(x)) is None else v for x in values)
    return Curve(sigma, series)


def bins_of(told: Any) -> Bins | None:
    """A table of reliability diagrams."""
    sigma = numbers(mapping(told).get("sigma"))
    rows = [mapping(told).get(key) for key in ("count", "confidence", "correct")]
    try:
        sums = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    if not sigma or sums.dim() != 3 or sums.shape[1] != len(sigma) or not sums.shape[2]:
        return None
    return Bins(sigma, Reliability(sums))


def samples_of(run: Run, notes: list[str]) -> Samples | None:
    """The first images with their seeds and labels; without them nothing can be paired."""
    tensors = tensors_in(run.folder / SAMPLES, notes)
    if not tensors:
        return None
    pixels = tensors.get("pixels")
    if pixels is None or pixels.dim() != 4 or pixels.dtype != torch.uint8 or not pixels.numel():
        notes.append(f"{SAMPLES} holds no images.")
        return None
    pairs = pairs_in(tensors, len(pixels)) or pairs_of_configuration(run, len(pixels))
    if pairs is None:
        notes.append(f"{SAMPLES} does not tell seeds and labels, so its images are not compared.")
        return None
    return Samples(pixels, pairs)


def pairs_in(tensors: Mapping[str, Tensor], count: int) -> tuple[tuple[int, int], ...] | None:
    """Seeds and labels that a file holds."""
    index, y = tensors.get("index"), tensors.get("y")
    if index is None or y is None or not index.shape == y.shape == (count,):
        return None
    return tuple(zip(index.long().tolist(), y.long().tolist(), strict=True))


def pairs_of_configuration(run: Run, count: int) -> tuple[tuple[int, int], ...] | None:
    """Those of files that do not hold them: the first numbers, each class in turn."""
    data = arguments(run.config, "data")
    first, classes = whole_number(data.get("first")), whole_number(data.get("num_classes"))
    is_plain = leaf(mapping(run.config.get("data"))) == "SeedData" and data.get("labels") is None
    if not is_plain or first is None or not classes or run.facts.get("world_size") != 1:
        return None
    return tuple((index, index % classes) for index in range(first, first + count))


def frames_of(folder: Path, notes: list[str]) -> Frames | None:
    """Images on the way, where a run kept some and the file is whole."""
    tensors = tensors_in(folder / FRAMES, notes)
    if not tensors:
        return None
    images = [tensors[name] for name in ("x", "denoised", "displacement") if name in tensors]
    index, sigma = tensors.get("index"), tensors.get("sigma", torch.empty(0))
    pairs = pairs_in(tensors, 0 if index is None else index.numel()) or ()
    size = (len(pairs), sigma.numel())
    if len(images) < 3 or 0 in size or sigma.dim() != 1 or not all(has(i, size) for i in images):
        notes.append(f"{FRAMES} is of no known form.")
        return None
    return Frames(tensors, pairs)


def has(images: Tensor, size: tuple[int, int]) -> bool:
    """Whether there are so many images at so many steps."""
    return images.dim() == 5 and images.numel() > 0 and tuple(images.shape[:2]) == size


def tensors_in(file: Path, notes: list[str]) -> dict[str, Tensor]:
    """Tensors of a file; none where it is not there or broken."""
    if not file.is_file():
        return {}
    try:
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        notes.append(f"{file.name} cannot be read ({first_line(error)}).")
        return {}


def first_line(error: Exception) -> str:
    """What an error says, without what it quotes."""
    return next(iter(str(error).splitlines()), type(error).__name__)
