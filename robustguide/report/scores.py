"""Tables of scores, of their differences, and of what was published."""

from collections.abc import Sequence
from typing import Any

from robustguide.checkpoints.published import Need, Preset
from robustguide.metrics.comparison import Difference
from robustguide.metrics.protocol import count
from robustguide.metrics.score import Entry, Score
from robustguide.metrics.verdict import Verdict
from robustguide.report.page import Table


def table(score: Score) -> Table:
    """One row a number."""
    several = any(len(entry.blocks) > 1 for entry in score.entries.values())
    columns = ["number", "value", "95% interval"]
    columns += ["least", "most"] if several else []
    columns += ["at endless n"]
    rows = []
    for entry in score.entries.values():
        row: list[Any] = [entry.shown, number(entry.value), interval(entry)]
        if several:
            row += [number(min(entry.blocks)), number(max(entry.blocks))]
        row.append(extrapolated(entry))
        rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows), caption(score))


def caption(score: Score) -> str:
    """What the numbers are of."""
    first = next(iter(score.entries.values()))
    blocks = len(first.blocks)
    images = f"{score.n:,} images" if blocks == 1 else f"{blocks} blocks of {score.n:,} images"
    against = ""
    if score.reference is not None:
        told = score.reference
        split = f", {told['split']} split" if told.get("split") else ""
        count = f" ({told['count']:,} images)" if told.get("count") else ""
        against = f", against {told['data']}{split}{count}"
    return f"{score.samples['path']}: {images} by {score.identity}{against}"


def number(value: float) -> str:
    """Four significant digits, as tables of this field have them."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def interval(entry: Entry) -> str:
    """The limits; a dash where nothing is known of the noise."""
    return "-" if entry.interval is None else "..".join(map(number, entry.interval))


def extrapolated(entry: Entry) -> str:
    """With its standard error."""
    if entry.infinity is None:
        return "-"
    return f"{number(entry.infinity['value'])} ± {entry.infinity['standard_error']:.2g}"


def footnotes(score: Score) -> list[str]:
    """Warnings, each a line."""
    return [f"Warning: {warning}" for warning in score.warnings]


def differences(found: Sequence[Difference]) -> Table:
    """One row a number that both have."""
    rows = tuple(
        (
            each.a.shown,
            number(each.a.value),
            number(each.b.value),
            f"{each.value:+.3g}",
            "-" if each.interval is None else "..".join(f"{v:+.3g}" for v in each.interval),
            each.verdict,
        )
        for each in found
    )
    columns = ("number", "A", "B", "B - A", "95% interval", "verdict")
    return Table(columns, rows, "")


def pairing(found: Sequence[Difference], paired: bool, names: tuple[str, str]) -> str:
    """How the noise was judged."""
    how = (
        "Both have the same seeds: differences of jackknife groups, paired by seed."
        if paired
        else "Their seeds differ, so nothing cancels: the variances of both are added."
    )
    return f"A = {names[0]}, B = {names[1]}. {how}"


def presets(found: Sequence[Preset]) -> Table:
    """One row a published result."""
    rows = tuple(
        (
            each.name,
            each.protocol,
            ", ".join(f"{k} {v}" for k, v in each.numbers.items()),
            each.source,
        )
        for each in found
    )
    return Table(("preset", "protocol", "published", "source"), rows, f"{len(rows)} presets")


def needed(found: Sequence[Need]) -> list[str]:
    """A line for each file, and one more for how to get it."""
    lines = []
    for need in found:
        lines.append(f"{'here' if need.there else 'missing':<8} {need.what:<16} {need.path}")
        if not need.there:
            lines.append(f"         {need.repair}")
    return lines


def verdicts(preset: Preset, found: Sequence[Verdict]) -> Table:
    """One row a published number."""
    rows = tuple(
        (
            each.shown,
            number(each.value),
            "-" if each.expected is None else "..".join(map(number, each.expected)),
            f"{each.printed.text} ({count(each.printed.images)})",
            each.word,
        )
        for each in found
    )
    columns = ("number", "ours", "95%", "published", "verdict")
    told = [f"{preset.name}: {preset.source}. 95%: where ours should be if that is true."]
    told += [f"{each.shown}: {each.reason}." for each in found if each.reason]
    return Table(columns, rows, "\n".join(told))
