"""What a command line says when all its configurations are read, defaults and all."""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".pkl", ".npz")


def resolved(stage: str, configs: Sequence[str], changes: Sequence[str]) -> str:
    """One configuration, as YAML, which says the same without the files that it came from.

    Args:
        stage: "fit" or "test".
        configs: Files, the later ones over the earlier.
        changes: `key=value` of options.

    Raises:
        FileNotFoundError: A configuration, or a network that it names, is not there.
        SystemExit: For an option that is wrong, as the command itself would.
    """
    for config in configs:
        if not Path(config).is_file():
            raise FileNotFoundError(f"The configuration {config} is not there ({Path.cwd()}).")
    words = [word for config in configs for word in ("--config", config)]
    words += [f"--{change.removeprefix('--')}" for change in changes]
    run = import_module("robustguide.main").run  # what `robustguide test` runs
    with redirect_stdout(io.StringIO()) as out:
        try:
            run([stage, *words, "--print_config"])
        except SystemExit as end:
            if end.code:
                raise
    text = out.getvalue()
    missing = [path for path in files_in(yaml.safe_load(text)) if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is not there (from {Path.cwd()}), and every task would end for want of "
            "it; make or fetch it first, or correct the configuration."
        )
    return text


def files_in(config: Any) -> Iterator[str]:
    """Files of networks and statistics that a configuration names."""
    if isinstance(config, dict):
        for value in config.values():
            yield from files_in(value)
    elif isinstance(config, list):
        for value in config:
            yield from files_in(value)
    elif isinstance(config, str) and config.endswith(SUFFIXES):
        yield config
