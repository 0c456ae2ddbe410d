"""Whether the files of a published result are here, how it is run, and whether ours agrees."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from robustguide.cards import card, cards, folder, present
from robustguide.checkpoints.published import Need, Preset, address, read
from robustguide.metrics.protocol import Protocol
from robustguide.metrics.protocols import PROTOCOLS
from robustguide.metrics.score import Score
from robustguide.metrics.verdict import Verdict, verdict


def preset_of_file(path: Path) -> Preset:
    """A preset of one's own, from a YAML with the fields of `published.yaml`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: For an entry that is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The preset {path} is not there (from {Path.cwd()}).")
    found = yaml.safe_load(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping; give configs, protocol, numbers and source.")
    return read(path.stem, found)


def protocol_of(preset: Preset) -> Protocol:
    """The protocol by which a preset was measured.

    Raises:
        ValueError: When it is none of ours: its numbers are another quantity.
    """
    found = PROTOCOLS.get(preset.protocol)
    if found is None:
        raise ValueError(
            f"The number of {preset.name!r} was measured by {preset.protocol}, which is none of "
            f"our protocols ({', '.join(PROTOCOLS)}): another resize or other weights make it "
            "another quantity, and no number of ours is comparable."
        )
    names = {name for measure in found.measures for name in measure.titles}
    if odd := set(preset.numbers) - names:
        raise ValueError(
            f"The preset {preset.name!r} has {', '.join(sorted(odd))}; protocol {found.name!r} "
            f"measures {', '.join(sorted(names))}."
        )
    return found


def command(preset: Preset, n: int, first: int, where: Path) -> tuple[str, ...]:
    """Words after `robustguide` that write the samples."""
    configs = [word for file in preset.configs for word in ("--config", file)]
    changes = [f"--{change.removeprefix('--')}" for change in preset.changes]
    return (
        "predict",
        *configs,
        *changes,
        f"--data.count={n}",
        f"--data.first={first}",
        "--trainer.callbacks=robustguide.callbacks.SampleWriter",
        "--trainer.logger=false",
        f"--trainer.default_root_dir={where}",
    )


def needs(preset: Preset, weights: str | None, reference: str | None) -> list[Need]:
    """All files that a preset reads, in the order in which they are read."""
    found: dict[str, Need] = {}
    for file in preset.configs:
        there = Path(file).is_file()
        found[file] = Need("configuration", file, there, "run from the project's folder")
        for need in _named(yaml.safe_load(Path(file).read_text()) if there else None):
            found.setdefault(need.path, need)
    protocol = protocol_of(preset)
    network = weights or preset.weights or protocol.weights
    if network in cards():
        need = _of_card(str(network), f"network of {protocol.name}")
        found[need.path] = need
    elif network is not None:
        there, repair = Path(network).is_file(), f"{protocol.source}"
        found[network] = Need(f"network of {protocol.name}", network, there, repair)
    if reference is not None or preset.reference is not None:
        path = str(reference or folder() / str(preset.reference))
        repair = address(str(preset.reference)) if reference is None else "give --reference FILE"
        found[path] = Need("reference", path, Path(path).is_file(), repair)
    return list(found.values())


def _named(part: Any) -> Iterator[Need]:
    """Checkpoints that a configuration names by card or by path."""
    if isinstance(part, Mapping):
        if part.get("card") and not part.get("path"):
            yield _of_card(part["card"], "checkpoint")
        elif isinstance(part.get("path"), str):
            path = part["path"]
            yield Need(
                "checkpoint", path, Path(path).exists(), "see the head of its configuration"
            )
        for value in part.values():
            yield from _named(value)
    elif isinstance(part, list):
        for value in part:
            yield from _named(value)


def _of_card(name: str, what: str) -> Need:
    of = card(name)
    there = present(of)
    repair = f"robustguide fetch {name}" if of.url else f"it comes from {of.source}"
    return Need(what, str(there or folder() / of.file), there is not None, repair)


def judge(preset: Preset, protocol: Protocol, score: Score) -> list[Verdict]:
    """One verdict for each published number.

    Args:
        preset: What was published.
        protocol: Its protocol.
        score: Of our samples by that protocol.
    """
    measures = {name: each for each in protocol.measures for name in each.titles}
    return [
        verdict(score.entries[protocol.key(name)], measures[name], printed)
        for name, printed in preset.printed.items()
    ]
