"""Worked examples of docs/: their fenced blocks as files, modules and commands."""

import io
import re
import runpy
import shlex
import sys
import types
from contextlib import redirect_stdout
from pathlib import Path

from robustguide.__main__ import main

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w./]+)\n")


def fenced(page, language):
    """Blocks of one language in a document."""
    found = FENCE.findall((ROOT / "docs" / page).read_text())
    return [source for spoken, source in found if spoken == language]


def files(page):
    """Blocks whose first line is a comment with a file's name, by that name."""
    named = {}
    for source in fenced(page, "python") + fenced(page, "yaml"):
        name = NAMED.match(source)
        assert name and name[1] not in named, f"{page}: no name of a file, or twice: {source[:60]}"
        named[name[1]] = source
    return named


def module_of(name, source, page):
    """A module that can be imported by its name from here on."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"docs/{page}, {name}", "exec"), vars(module))
    return module


def modules(page):
    """Modules of an example by name; scripts, which a command of the page runs, are none."""
    scripts = {word for words in lines(page) for word in words if words[0] == "python"}
    return {
        name[:-3]: module_of(name[:-3], source, page)
        for name, source in files(page).items()
        if name.endswith(".py") and name not in scripts
    }


def names_in(module):
    """Public names of a module; pytest finds tests and fixtures among them."""
    return {key: value for key, value in vars(module).items() if key[0] != "_"}


def write(page, folder):
    """The files of an example in a folder, beside the configurations that its commands name."""
    (folder / "configs").symlink_to(ROOT / "configs")
    for name, source in files(page).items():
        (folder / name).write_text(source)
    return folder


def lines(page):
    """The commands of a page, in order, in words, without a path of modules before them."""
    for block in fenced(page, "bash"):
        for line in block.splitlines():
            words = shlex.split(line)
            yield words[1:] if words[0] == "PYTHONPATH=." else words


def run(words):
    """What a command prints; it runs in this process and in the present folder."""
    program, *rest = words
    with redirect_stdout(io.StringIO()) as printed:
        if program == "python":
            runpy.run_path(rest[0], run_name="__main__")
        else:
            assert program == "robustguide", words
            assert main(rest) != 1
    return printed.getvalue()
