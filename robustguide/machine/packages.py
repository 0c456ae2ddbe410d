"""Packages and their versions.

Nothing is imported before it is needed: what cannot be imported is a finding, not a crash, and a
release that is known to be malicious is never imported at all.
"""

import platform
from collections.abc import Iterator
from importlib import import_module, metadata

from packaging.requirements import Requirement

from robustguide.machine.finding import Finding

MALICIOUS = {"lightning": {"2.6.2", "2.6.3"}, "pytorch-lightning": {"2.6.2", "2.6.3"}}
OPTIONAL = ("timm", "diffusers", "open_clip_torch")
MODULES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "robustness": "robustness.attack_steps",
}


def versions() -> Iterator[Finding]:
    """The interpreter, and every package against the bounds that this one states."""
    yield Finding("versions", "python", platform.python_version())
    own = version_of("robustguide")
    repair = "" if own else "run `pip install -e .` in the repository"
    yield Finding("versions", "robustguide", own or "not installed", repair)
    requirements = map(Requirement, metadata.requires("robustguide") or ()) if own else ()
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate():
            yield required(requirement)
    for name in OPTIONAL:
        yield Finding("versions", name, version_of(name) or "not installed (optional)")
    if version_of("pytorch-lightning") in MALICIOUS["pytorch-lightning"]:
        yield required(Requirement("pytorch-lightning"))


def required(requirement: Requirement) -> Finding:
    """A package: there, within its bounds, and importable."""
    name, found = requirement.name, version_of(requirement.name)
    wanted = f"{name}{requirement.specifier}"
    install = f"run `pip install '{wanted}'`"
    if found is None:
        return Finding("versions", name, "not installed", install)
    if found in MALICIOUS.get(name, ()):
        repair = (
            f"{name} {found} was a malicious upload that steals credentials: it is not imported "
            f"here. Run `pip uninstall {name}`, change every password and token that this "
            f"machine has seen, then {install}"
        )
        return Finding("versions", name, f"{found}, MALICIOUS", repair)
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding("versions", name, f"{found}, needs {requirement.specifier}", install)
    module = MODULES.get(name, name.replace("-", "_"))
    try:
        import_module(module)
    except Exception as error:
        value = f"{found}, but `import {module}` fails: {error}"
        return Finding("versions", name, value, f"run `pip install --force-reinstall '{wanted}'`")
    return Finding("versions", name, found + (f" ({module})" if name == "robustness" else ""))


def version_of(name: str) -> str | None:
    """Installed version, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_safe() -> bool:
    """Whether Lightning may be imported."""
    return all(version_of(name) not in bad for name, bad in MALICIOUS.items())
