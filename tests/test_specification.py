"""Plain data that says how a module is built."""

import pytest

from robustguide.specification import calls, differences, fold

NET = {"class_path": "a.Net", "init_args": {"width": 32, "stages": [1, 2]}}
NESTED = {
    "class_path": "a.Outer",
    "init_args": {"nets": [NET, {"by_name": NET}], "count": 3},
    "dict_kwargs": {"last": NET},
}


def test_all_class_paths_are_found_from_the_top():
    assert [(found.where, found.class_path) for found in calls(NESTED)] == [
        ("", "a.Outer"),
        ("nets.0", "a.Net"),
        ("nets.1.by_name", "a.Net"),
        ("last", "a.Net"),
    ]


def test_fold_makes_the_innermost_first_and_merges_open_arguments():
    made = []

    def make(found):
        made.append(found.class_path)
        return (found.class_path, found.arguments)

    net = ("a.Net", {"width": 32, "stages": [1, 2]})
    assert fold(NESTED, make) == (
        "a.Outer",
        {"nets": [net, {"by_name": net}], "count": 3, "last": net},
    )
    assert made == ["a.Net", "a.Net", "a.Net", "a.Outer"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"class_path": "a.Net", "init_args": {"act": len}}, "'act' holds a builtin"),
        ({"class_path": "a.Net", "init_args": {"sizes": [{1}]}}, "'sizes.0' holds a set"),
        ({"class_path": "a.Net", "init_args": {"map": {1: 2}}}, "has the key 1"),
        ({"class_path": "a.Net", "args": []}, "args beside"),
        ({"class_path": ["a.Net"]}, "needs a class_path that is a string"),
        ({"class_path": "a.Net", "init_args": [1]}, "init_args by name"),
    ],
)
def test_what_is_no_plain_data_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        list(calls(value))


def test_differences_name_fields_and_both_values():
    file = {
        "class_path": "a.Outer",
        "init_args": {"net": NET, "extra": 1, "last": NET, "count": 3},
    }
    wider = {"class_path": "a.Net", "init_args": {"width": 64, "stages": (1, 2)}}
    other = {"class_path": "a.Other", "init_args": {"width": 32, "stages": [1, 2]}}
    given = {"class_path": "a.Outer", "init_args": {"net": wider, "last": other, "count": 3}}
    assert differences(file, file) == []
    assert differences(file, given) == [
        "net.width: file 32, given 64",
        "last: file a.Net, given a.Other",
        "extra: file 1, given (its default)",
    ]
