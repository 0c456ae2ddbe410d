"""What classifiers painted, for people: a sheet of images and a table."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from robustguide.report.page import Cell, Table
from robustguide.report.sheets import grid_comparison

Document = Mapping[str, Any]


def sheet(
    start: Float[Tensor, "k c h w"],
    images: Mapping[str, Float[Tensor, "k c h w"]],
    document: Document,
) -> Figure:
    """A row for the starts and one a classifier, a column a class."""
    titles = [each["name"] for each in document["classes"]]
    return grid_comparison({"start": start, **images}, titles)


def table(document: Document) -> Table:
    """A row a classifier: log p of the wanted class before and after, and what a judge sees."""
    judged = accuracy(document["start_judge_accuracy"])
    rows: list[list[Cell]] = [["start", None, None, 0.0, judged]]
    for each in document["painted"]:
        numbers = each["log_p_before"], each["log_p_after"], each["moved"]
        rows.append([each["name"], *numbers, accuracy(each["judge_accuracy"])])
    n, judge = document["n"], document["judge"]
    caption = (
        f"Means over {n} images. log p: of the wanted class by the classifier that painted, in "
        f"nats, at sigma {document['levels'][-1]:g}. moved: L2 distance from the start, at most "
        f"{document['radius']:.3g}. "
        + (
            "judged: needs --judge."
            if judge is None
            else "judged: share in which another "
            "classifier sees the wanted class, with 95 % limits (Wilson)."
        )
    )
    titles = ["classifier", "log p before", "after", "moved", "judged"]
    return Table(titles, rows, caption, dict.fromkeys(titles[1:4], ".3f"))


def accuracy(judged: Mapping[str, Any] | None) -> str | None:
    """A share with its limits."""
    if judged is None:
        return None
    low, high = judged["limits"]
    return f"{judged['value']:.3f} [{low:.3f}, {high:.3f}]"
