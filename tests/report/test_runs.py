"""Runs that were read: their terms, and names for figures."""

import reported

from robustguide.report.runs import Run, labels, term_of


def test_short_names_stay_apart(tmp_path):
    names = ["a" * 30 + "x" + "b" * 30, "a" * 30 + "y" + "b" * 30, "_cost_$x$", "\n"]
    found = labels([Run(name, tmp_path) for name in names])
    assert len(set(found.values())) == 4
    assert found["_cost_$x$"] == r"cost \$x\$" and found["\n"] == "?"
    assert all(len(text) <= 26 for text in found.values())


def test_the_scale_of_a_term_is_the_product_of_those_around_it():
    def scaled(term, **arguments):
        return reported.spec("guidance.Scaled", term=term, **arguments)

    bare = reported.spec("guidance.ClassifierFree")
    assert str(term_of("free", bare)) == "free (ClassifierFree)"
    assert term_of("free", scaled(bare, weight=3.0)).scale == 2.0
    assert term_of("free", scaled(scaled(bare, scale=3.0), scale=2.0)).scale == 6.0
    # what is switched off stays so, whatever stands inside
    assert term_of("free", scaled(scaled(bare, scale=3.0), scale=0.0)).scale == 0.0
    assert term_of("free", scaled(scaled(bare, scale=3.0), scale=[1, 2])).scale == "[1, 2] x 3.0"
