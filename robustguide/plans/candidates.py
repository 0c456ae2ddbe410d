"""Which classifiers could guide, read from checkpoints, configurations and finished runs.

A candidate is a classifier, where it looks and what of its logits is increased: all that its
calibration depends on. What else guides a run, and how strongly, is left aside.
"""

import json
import math
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from lightning import LightningDataModule

from robustguide.callbacks.origin import checkpoints_in
from robustguide.checkpoints import sha256_of
from robustguide.guidance import (
    AtDenoised,
    AtState,
    Averaged,
    ClassifierGuidance,
    ClassifierLoss,
    Matched,
    Switched,
    ThroughDenoiser,
    Universal,
    Within,
)
from robustguide.modules import Generation
from robustguide.samplers import Sampler
from robustguide.specification import Specification, call

Found = tuple[Path, Path, Any]  # folder that was given, folder of a run, its results
NO_GRADIENT = "no classifier's gradient guides it"


@dataclass(frozen=True)
class Look:
    """A classifier at one place, as specifications.

    Attributes:
        classifier: Whose answers they are.
        view: Where it looks.
        objective: What of its logits is increased; null is log p(y | x).
        labels: Its class of every class of the denoiser; null where they agree.
        clip: Bound of the denoised image that it is shown; null does not clip.
        above: It answers above this level,
        upto: and up to this one, where a configuration divides levels between classifiers.
        evaluations: How often it is differentiated in a step.
    """

    classifier: Specification
    view: Specification
    objective: Specification | None = None
    labels: tuple[int, ...] | None = None
    clip: float | None = None
    above: float = 0.0
    upto: float = math.inf
    evaluations: int = 1


@dataclass(frozen=True)
class Candidate:
    """What is ranked.

    Attributes:
        name: For people.
        looks: Its classifier; several where levels are divided.
        denoiser: Makes the predicted clean images; null where none is given.
        reference: Source of the real images that its samples were compared with.
        blocks: Results of its runs, one a block of seeds.
        folders: Where they lie.
    """

    name: str
    looks: tuple[Look, ...]
    denoiser: Specification | None = None
    reference: Specification | None = None
    blocks: tuple[Mapping[str, Any], ...] = ()
    folders: tuple[str, ...] = ()

    def at(self, sigma: float) -> Look:
        """The one that answers at a level.

        Raises:
            ValueError: None does, or several do.
        """
        if len(self.looks) == 1:
            return self.looks[0]
        found = [look for look in self.looks if look.above < sigma <= look.upto]
        if len(found) != 1:
            raise ValueError(
                f"{self.name}: {len(found)} classifiers guide at sigma {sigma:g}, and one is "
                "ranked at a time; give each a configuration of its own, or levels at which there "
                "is one."
            )
        return found[0]

    def needs_denoiser(self) -> bool:
        """Whether a classifier looks at what a denoiser makes."""
        return any(resolved(look.view["class_path"]).needs_denoised for look in self.looks)

    def setting(self) -> dict[str, Any]:
        """All that its answers depend on; files by what they hold."""
        denoiser = self.denoiser if self.needs_denoiser() else None
        said: dict[str, Any]
        said = plain({"looks": [asdict(look) for look in self.looks], "denoiser": denoiser})
        return said


@dataclass(frozen=True)
class Scope:
    """What the terms around a classifier make of it."""

    clip: float | None
    above: float = 0.0
    upto: float = math.inf
    evaluations: int = 1

    def within(self, above: float, upto: float) -> "Scope":
        """Limited to an interval."""
        return replace(self, above=max(self.above, above), upto=min(self.upto, upto))


def of_checkpoint(
    path: str | None,
    card: str | None,
    name: str,
    view: Specification,
    denoiser: Specification | None,
    clip: float | None,
) -> Candidate:
    """A trained classifier, by its file or card.

    Raises:
        ValueError: The view needs a denoiser, and there is none.
    """
    classifier = {
        "class_path": "robustguide.checkpoints.load_classifier",
        "init_args": {"path": path, "card": card},
    }
    found = Candidate(name, (Look(classifier, view, clip=clip),), denoiser)
    if denoiser is None and found.needs_denoiser():
        raise ValueError(
            f"{view['class_path']} looks at what a denoiser makes of the noisy image; give one, "
            "such as --denoiser robustguide.checkpoints.load_denoiser --denoiser.path FILE."
        )
    return found


def of_config(file: Path, base: Sequence[Path]) -> Candidate:
    """What `robustguide test --config BASE --config FILE` would guide with.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It does not sample, or no gradient of a classifier guides it.
    """
    documents = [yaml.safe_load(path.read_text()) or {} for path in (*base, file)]
    if not any(document.get("model") for document in documents):
        raise ValueError(f"{file} has no `model`; give a configuration that samples.")
    set_parsing_settings(subclasses_enabled=[Sampler])  # frozen dataclasses are final otherwise
    parser = ArgumentParser(prog=f"robustguide rank {file}")
    parser.add_argument("--model", type=Generation)
    parser.add_argument("--data", type=LightningDataModule)
    parsed = parser.parse_args(
        [
            f"--{part}={json.dumps(document[part])}"
            for document in documents
            for part in ("model", "data")
            if document.get(part)
        ]
    )
    model = json.loads(json.dumps(parsed.model.as_dict()))
    data = json.loads(json.dumps(parsed.data.as_dict())) if parsed.data else {}
    return guided(file.stem, model["init_args"], data.get("init_args", {}).get("reference"))


def of_runs(folders: Sequence[Path]) -> tuple[list[Candidate], dict[str, str]]:
    """Finished guided runs anywhere in these folders; blocks of the same method are one.

    Returns:
        Candidates, and why other methods are none, by name.

    Raises:
        FileNotFoundError: A folder is not there.
        ValueError: None of them holds a run that sampled.
    """
    groups: dict[str, list[Found]] = {}
    for root in folders:
        if not root.is_dir():
            raise FileNotFoundError(f"The folder {root} is not there (from {Path.cwd()}).")
        for file in sorted(root.rglob("results.json")):
            results = json.loads(file.read_text())
            if is_generation(results):
                groups.setdefault(method(results), []).append((root, file.parent, results))
    if not groups:
        raise ValueError(
            f"No run that sampled lies in {', '.join(map(str, folders))}; "
            "`robustguide ablate CONFIG...` leaves such runs."
        )
    candidates, skipped = [], {}
    for name, group in named(groups.values()).items():
        _, places, results = zip(*group, strict=True)
        config = results[0]["run"]["config"]
        reference = config["data"].get("init_args", {}).get("reference")
        try:
            found = guided(name, config["model"]["init_args"], reference)
            for each in results:
                refuse_changed(found, each["run"]["checkpoints"])
        except ValueError as error:
            skipped[name] = str(error).removeprefix(f"{name}: ")
            continue
        paths = tuple(place.as_posix() for place in places)
        candidates.append(replace(found, blocks=results, folders=paths))
    return candidates, skipped


def is_generation(results: Any) -> bool:
    """Whether these are results of a test that sampled."""
    run = results.get("run") if isinstance(results, dict) else None
    if not isinstance(run, dict) or run.get("stage") != "test" or not run.get("config"):
        return False
    try:
        kind = resolved(run["config"]["model"]["class_path"])
    except ValueError:  # of a package that is not here
        return False
    return isinstance(kind, type) and issubclass(kind, Generation)


def method(results: Mapping[str, Any]) -> str:
    """What runs of the same method have in common: all but seeds and folders."""
    config = json.loads(json.dumps(results["run"]["config"]))
    config["data"].get("init_args", {}).pop("first", None)
    config["trainer"].pop("default_root_dir", None)
    return json.dumps(config, sort_keys=True)


def named(groups: Iterable[list[Found]]) -> dict[str, list[Found]]:
    """Groups of runs by their folders; that of blocks is the folder around them."""
    found: dict[str, list[Found]] = {}
    for group in groups:
        root, place, _ = group[0]
        whole = place.parent if place.name.startswith("block_") else place
        name = whole.relative_to(root).as_posix() if whole != root else whole.resolve().name
        if name in found:
            name = place.as_posix()
        found[name] = group
    return found


def refuse_changed(candidate: Candidate, recorded: Mapping[str, str]) -> None:
    """Refuses runs of networks that are others by now.

    Raises:
        ValueError: A file that the run read has changed, or is not there.
    """
    said = json.dumps([asdict(candidate)["looks"], candidate.denoiser])
    for path, sha256 in recorded.items():
        if json.dumps(path) not in said:
            continue
        if not Path(path).is_file():
            raise ValueError(f"its network {path} is not there any more")
        if hash_of(path) != sha256:
            raise ValueError(f"its network {path} is another one now; run it again")


def guided(name: str, model: Mapping[str, Any], reference: Specification | None) -> Candidate:
    """The candidate in the arguments of a `Generation`.

    Raises:
        ValueError: No gradient of a classifier guides.
    """
    scope = Scope(clip=(model["sampler"].get("init_args") or {}).get("clip"))
    looks = tuple(looks_in(model.get("guidance"), scope))
    if not looks:
        raise ValueError(
            f"{name}: {NO_GRADIENT}; what is ranked are those of ClassifierGuidance and Universal"
        )
    return Candidate(name, looks, model["denoiser"], reference)


def looks_in(value: Any, scope: Scope) -> Iterator[Look]:
    """Every classifier in terms whose gradient guides."""
    found = call(value)
    if found is None:
        parts = value.values() if isinstance(value, dict) else value
        for part in parts if isinstance(value, dict | list) else ():
            yield from looks_in(part, scope)
        return
    kind, said = resolved(found.class_path), found.arguments
    if isinstance(kind, type) and issubclass(kind, ClassifierGuidance):
        yield look(said, said.get("view") or specified(AtState), scope)
    elif isinstance(kind, type) and issubclass(kind, Universal):
        loss = call(said["loss"])
        if loss is not None and resolved(loss.class_path) is ClassifierLoss:
            view = ThroughDenoiser if said.get("forward") else AtDenoised
            yield look(loss.arguments, specified(view), replace(scope, clip=None))
    else:
        for name, part in said.items():
            yield from looks_in(part, narrowed(kind, name, said, scope))


def look(said: Mapping[str, Any], view: Specification, scope: Scope) -> Look:
    """A classifier with what is said of it."""
    labels = said.get("labels")
    return Look(
        said["classifier"],
        view,
        said.get("objective"),
        None if labels is None else tuple(labels),
        **asdict(scope),
    )


def narrowed(kind: Any, part: str, said: Mapping[str, Any], scope: Scope) -> Scope:
    """What a term makes of one of its parts."""
    if kind is Switched:
        middle = said["sigma"]
        return scope.within(*((middle, math.inf) if part == "above" else (0.0, middle)))
    if kind is Within:
        # results have words for what JSON has no numbers for
        return scope.within(said.get("sigma_min", 0.0), float(said.get("sigma_max", math.inf)))
    if kind is Averaged:
        return replace(scope, evaluations=scope.evaluations * said["count"])
    return replace(scope, clip=None) if kind is Matched else scope


def specified(kind: type) -> Specification:
    """A class without arguments."""
    return {"class_path": f"robustguide.guidance.{kind.__name__}"}


def resolved(class_path: str) -> Any:
    """The class or function of that name.

    Raises:
        ValueError: There is none.
    """
    try:
        return pkgutil.resolve_name(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"The class path {class_path!r} cannot be imported: {error}.") from error


def plain(value: Any) -> Any:
    """A specification without what does not change answers; files by their hashes."""
    if isinstance(value, dict):
        kept = {key: plain(part) for key, part in value.items() if key not in ("device", "trust")}
        kept = {key: part for key, part in kept.items() if part not in (None, {})}
        files = sorted(hash_of(path) for path in carded(value))
        return kept | ({"files": files} if files else {})
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, str) and value in set(checkpoints_in(value)):
        return hash_of(value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def carded(value: Mapping[str, Any]) -> Iterator[str]:
    """The file that a card stands for, where a specification names no file."""
    if value.get("card") and not value.get("path"):
        yield from checkpoints_in({"card": value["card"]})


@cache
def hash_of(path: str) -> str:
    """Hash of a file; one reading of one that many name."""
    return sha256_of(path)
