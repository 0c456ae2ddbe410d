"""What mkdocs.yml cannot say of the site: pages of the API, its first page, links out of docs/.

MkDocs calls the functions whose names begin with `on_`.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.inlinepatterns import SimpleTextInlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[1] / "robustguide"
MODULES = ("interfaces", "specification", "files")  # public modules that are no package
FIRST = "start-here.md"
LINK = re.compile(r"\]\(([^)\s#:]+)((?:#[^)\s]*)?)\)")
SHOWN = "{show_root_heading: true, show_root_toc_entry: true, show_root_full_path: false}"
SILENT = "{members: []}"
MARKER = re.compile(r"^<!-- .* -->$", re.MULTILINE)


class Powers(Extension):
    """Leaves the two stars of sigma**2 alone, which would set what follows in bold."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Asks before emphasis does, whose priority is 60."""
        processor = SimpleTextInlineProcessor(r"(?<=[\w)'])(\*\*)(?=[\w(-])")
        md.inlinePatterns.register(processor, "powers", 65)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages of the API to the navigation."""
    config.markdown_extensions.append(Powers())
    pages: list[Any] = [{name.removeprefix("robustguide."): page_of(name)} for name in public()]
    config.nav = [*(config.nav or []), {"API": pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages of the API, and start-here.md the first page."""
    for name in public():
        files.append(File.generated(config, page_of(name), content=text_of(name)))
    first = files.get_file_from_path(FIRST)
    if first is not None:
        first.name, first.dest_uri, first.url = "index", "index.html", "index.html"
        first.abs_dest_path = str(Path(config.site_dir, "index.html"))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Sends links to files of the repository there; drops the markers that scripts write between.

    A table or list right behind such a comment would not be read as one.
    """
    here = posixpath.dirname(page.file.src_uri)

    def target(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", here, found[1]))
        inside = files.get_file_from_path(posixpath.relpath(path, "docs"))
        is_page = inside is not None and inside.inclusion.is_included()
        if is_page or not (PACKAGE.parent / path).exists():  # MkDocs tells of what is nowhere
            return found[0]
        return f"]({config.extra['source']}{path}{found[2]})"

    return MARKER.sub("", LINK.sub(target, markdown))


def public() -> list[str]:
    """Dotted names of all packages, and of the modules above, sorted."""
    packages = (init.parent.relative_to(PACKAGE.parent) for init in PACKAGE.rglob("__init__.py"))
    modules = (f"robustguide.{name}" for name in MODULES)
    return sorted([*(".".join(path.parts) for path in packages), *modules])


def page_of(name: str) -> str:
    """The source of a page, below docs/."""
    return f"api/{name}.md"


def text_of(name: str) -> str:
    """A page: what a package exports; of one that exports nothing, what its modules are for."""
    place = PACKAGE.parent.joinpath(*name.split("."))
    init = place / "__init__.py"
    parts = [f"# {name}\n\n::: {name}\n"]
    if init.exists():
        modules = sorted(path.stem for path in place.glob("*.py") if path != init)
        names = exported(init)
        hidden = [each for each in modules if each in names]  # by the module of the same name
        parts += [f"::: {name}.{each}.{each}\n    options: {SHOWN}\n" for each in hidden]
        alone = [] if names else modules
        parts += [f"## {each}\n\n::: {name}.{each}\n    options: {SILENT}\n" for each in alone]
    return "\n".join(parts)


def exported(init: Path) -> list[str]:
    """What a package names in its `__all__`; nothing where it has none."""
    for statement in ast.parse(init.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(statement.value)
            return names
    return []
