"""Arithmetic of the benchmarks: ratios, exponents, bounds, and the page that they write."""

import json

import bench
import pytest
import roofline
import scaling
import torch
import turns

from robustguide.machine.peak import matmul_peak


def test_a_ratio_is_the_median_of_the_turns_own_ratios(monkeypatch):
    times = iter([2.0, 6.0, 12.0, 3.0, 2.0, 4.0])  # fast first, then slow first, fast first
    monkeypatch.setattr(turns, "seconds", lambda way: next(times))
    found = turns.turns("x", lambda: 0, lambda: 1, 3, wanted=3.5)
    assert found.seconds == (6.0, 2.0) and found.ratio == 3.0 and found.is_missed
    assert "**3.00**" in found.row() and found.row().endswith("3.5 MISSED |")


def test_an_exponent_is_that_of_the_larger_sizes_and_a_fixed_cost_bends_the_line():
    sizes = [1, 2, 4, 8, 16, 32, 64, 128]
    line = scaling.Line("n", "work", sizes, [3 * n**1.5 for n in sizes])
    assert line.exponent == pytest.approx(1.5) and line.bend is None
    line = scaling.Line("n", "work", sizes, [max(n, 8.0) for n in sizes])
    assert line.exponent == pytest.approx(1.0) and line.bend == 4


def test_an_operation_takes_at_least_what_its_products_and_its_bytes_take():
    speed = 1e9
    x, y = torch.ones(64, 128), torch.ones(128, 32)
    peak = matmul_peak(x.device, x.dtype)
    roof = roofline.Roofline(x.device, speed)
    with roof:
        z = x @ y
        z.t().relu()
    product, rest = roof.kinds["matrix products"], roof.kinds["the rest, element by element"]
    assert (product.flops, product.bytes) == (2 * 64 * 128 * 32, 4 * (64 * 128 + 128 * 32 + 2048))
    assert product.least == pytest.approx(max(product.flops / peak, product.bytes / speed))
    assert (rest.flops, rest.bytes, rest.calls) == (0, 2 * 4 * 2048, 1)  # a view moves nothing


def test_results_name_what_was_missed_and_what_did_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "RECORDS", tmp_path)
    ratio = turns.Ratio("ours", (2.0, 1.0), 2.0, 1.9, 2.1, 3.5)
    assert not turns.record("robust", [ratio], {"images": 3})
    assert turns.record("memory", facts={"growth": "none"}, text="| a |")
    path = tmp_path / "results.md"
    assert bench.written(path) == ["robust"]
    text = path.read_text()
    assert ratio.row() in text and "* images: 3" in text and "| a |" in text
    assert "## sampling\n\nNot run." in text and not path.with_suffix(".tmp").exists()
    assert json.loads((tmp_path / "robust.json").read_text())["ratios"][0]["wanted"] == 3.5
