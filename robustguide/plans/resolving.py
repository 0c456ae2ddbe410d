"""What a command line says when all its configurations are read, defaults and all."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import yaml

from robustguide.callbacks.origin import SUFFIXES, nodes


def resolved(stage: str, configs: Sequence[str], changes: Sequence[str]) -> str:
    """One configuration, as YAML, which says the same without the files that it came from.

    Nothing is built, and no network is looked for.

    Args:
        stage: "fit" or "test".
        configs: Files, the later ones over the earlier.
        changes: `key=value` of options.

    Raises:
        FileNotFoundError: A configuration is not there.
        SystemExit: For an option that is wrong, as the command itself would.
    """
    for config in configs:
        if not Path(config).is_file():
            raise FileNotFoundError(
                f"The configuration {config} is not there (from {Path.cwd()})."
            )
    words = [word for config in configs for word in ("--config", config)]
    words += [f"--{change.removeprefix('--')}" for change in changes]
    run = import_module("robustguide.main").run  # what `robustguide test` runs
    with redirect_stdout(io.StringIO()) as out:
        try:
            run([stage, *words, "--print_config"])
        except SystemExit as end:
            if end.code:
                raise
    return out.getvalue()


def refuse_missing(config: str) -> None:
    """Refuses a configuration that names files of networks or statistics which are not there.

    Raises:
        FileNotFoundError: Naming the first.
    """
    for node in nodes(yaml.safe_load(config)):
        is_file = isinstance(node, str) and node.endswith((*SUFFIXES, ".npz"))
        if is_file and not Path(node).exists():
            raise FileNotFoundError(
                f"{node} is not there (from {Path.cwd()}), and every task would end for want of "
                "it; make or fetch it first, or correct the configuration."
            )
