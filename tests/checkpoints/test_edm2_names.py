"""Names of EDM2's files."""

import pytest

from robustguide.checkpoints.edm2_names import EDM2Name, edm2_name


@pytest.mark.parametrize(
    ("file", "name", "network"),
    [
        (
            "edm2-img512-xs-2147483-0.135.pkl",
            EDM2Name("img512", "xs", False, 2147483, 0.135),
            "edm2-img512-xs",
        ),
        (
            "edm2-img512-s-uncond-2147483-0.070.pkl",
            EDM2Name("img512", "s", True, 2147483, 0.07),
            "edm2-img512-s-uncond",
        ),
        (
            "edm2-img64-xl-0671088-0.040.pkl",
            EDM2Name("img64", "xl", False, 671088, 0.04),
            "edm2-img64-xl",
        ),
    ],
)
def test_names_are_read_and_written(file, name, network):
    assert edm2_name(file) == name
    assert (name.file, name.network) == (file, network)


@pytest.mark.parametrize("kimg", [0, 33, 134217, 2147483, 9999999])
@pytest.mark.parametrize("ema", [0.01, 0.015, 0.07, 0.145, 0.25])
@pytest.mark.parametrize("unconditional", [False, True])
def test_reading_undoes_writing(kimg, ema, unconditional):
    name = EDM2Name("img512", "xxl", unconditional, kimg, ema)
    assert edm2_name(name.file) == name


def test_paths_and_addresses():
    file = "edm2-img512-m-0268435-0.205.pkl"
    for where in ("https://host/edm2/posthoc-reconstructions/", "/data/", "..\\models\\", ""):
        assert edm2_name(where + file).file == file


@pytest.mark.parametrize(
    "file",
    [
        "edm-cifar10-32x32-cond-vp.pkl",
        "phema-2147483-0.150.pkl",
        "edm2-img512-xs-2147483-0.135.safetensors",
        "edm2-img512-xs-2147483-0.13.pkl",
        "edm2-img512-uncond-xs-2147483-0.135.pkl",
        "edm2-img512-xs-2147-0.135.pkl",
        "",
    ],
)
def test_other_names_are_refused_with_an_example(file):
    with pytest.raises(ValueError, match=r"such as edm2-img512-xs-2147483-0\.135\.pkl"):
        edm2_name(file)
