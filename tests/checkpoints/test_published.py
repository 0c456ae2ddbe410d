"""Published results: what each names is there, and says the same."""

import re
from pathlib import Path

import pytest

from robustguide.cards import cards
from robustguide.checkpoints.published import (
    address,
    document,
    preset,
    presets,
    read,
    results_of,
)

ROOT = Path(__file__).parents[2]
WORDS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "fd": "FD_DINOv2",
}
PUBLISHED = [each for each in presets().values() if "/published/" in each.configs[0]]


def head(file):
    lines = (ROOT / file).read_text().splitlines()
    return " ".join(line[1:].strip() for line in lines if line[:1] == "#")


@pytest.mark.parametrize("found", PUBLISHED, ids=lambda each: each.name)
def test_numbers_are_those_of_the_configurations_head(found):
    text = head(found.configs[-1])
    for name, number in found.numbers.items():
        printed = rf"(?<![\w.]){WORDS[name]} {re.escape(number)}(?![\d])"
        assert re.search(printed, text), (name, text)


@pytest.mark.parametrize("found", presets().values(), ids=lambda each: each.name)
def test_configurations_name_the_cards_and_no_others(found):
    named = [
        card
        for file in found.configs
        for card in re.findall(r"card: ([\w.\-]+)", (ROOT / file).read_text())
    ]
    assert set(found.cards) == set(named)
    assert set(found.cards) <= set(cards())


def test_every_configuration_with_a_number_has_a_preset():
    told = {file for each in presets().values() for file in each.configs}
    silent = {"dit256_samples", "kawar_imagenet128"}  # their heads say that none is known
    files = {f"configs/published/{f.name}" for f in (ROOT / "configs/published").glob("*.yaml")}
    assert files - told == {f"configs/published/{stem}.yaml" for stem in silent}
    for stem in silent:
        assert re.search("[Nn]o number", head(f"configs/published/{stem}.yaml"))


def test_references_have_an_address():
    needed = {each.reference for each in presets().values()} - {None}
    assert needed == set(document()["references"])
    assert all(url.endswith(name) for name, url in document()["references"].items())
    assert "VIRTUAL_imagenet128_labeled.npz into" in address("VIRTUAL_imagenet128_labeled.npz")


def test_rounding_is_half_of_the_last_digit():
    assert preset("adm128").printed["fid"].rounding == pytest.approx(0.005)
    assert preset("adm256").printed["inception_score"].text == "186.70"


def test_a_preset_is_found_by_its_files_name_too():
    assert preset("edm2_img512_s_guid_fid") is preset("edm2-img512-s-guid-fid")
    with pytest.raises(ValueError, match="did you mean adm128"):
        preset("adm18")


def test_cards_tell_what_was_published_of_them():
    told = results_of("adm-imagenet128")
    assert told["adm128"].startswith("fid 2.97, sfid 5.09")
    assert results_of("dinov2-vitl14") == {}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"numbers": {"fid": 2.97}}, "in quotes"),
        ({"numbers": {}}, "needs `numbers`"),
        ({"numbers": {"fid": "2.9"}, "protocol": "adm", "sources": ""}, "is not understood"),
    ],
)
def test_an_entry_that_is_none(entry, message):
    with pytest.raises(ValueError, match=message):
        read("mine", entry)
