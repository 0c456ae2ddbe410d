"""The command `robustguide`: dispatch, help and errors, without importing torch."""

import errno
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

TRAINER_COMMANDS = {
    "fit": "train, fine-tune or calibrate a network",
    "validate": "evaluate a network on the validation split",
    "test": "evaluate a classifier by noise level, or guided generation",
    "predict": "generate images",
}
HELPERS = {
    "demo": "the main job on digits, from nothing to a report",
    "ablate": "several configurations on the same seeds, in one table with intervals",
    "report": "one offline page about any runs",
    "doctor": "versions, devices, threads, data sets and weights found",
    "cards": "published checkpoints that are known, and which are here",
    "fetch": "download a published checkpoint",
    "convert": "rewrite a published checkpoint as safetensors",
    "prepare": "images as shards, resized once by a named recipe; or whether shards are whole",
    "encode": "write the latents of a data set as shards",
    "atlas": "what the gradients of classifiers look like, by noise level",
    "paint": "images that a classifier makes alone, without a diffusion model",
    "rank": "classifiers in the order of calibration and cost, before any is sampled with",
    "score": "numbers of samples by a named protocol, with intervals",
    "compare": "whether two scores differ by more than their seeds",
    "cost": "FLOPs and hours of sampling or training, before anything is run",
    "survey": "a page that asks people which of two images is better, and what they say",
    "reproduce": "a published result with fewer images, and whether it agrees",
    "replicate": "tables of papers again on Fashion-MNIST, cell by cell",
    "stats": "statistics of real images by a named protocol, for samples to be compared with",
    "repack": "samples as a folder, an .npz file or shards",
    "submit": "images in array tasks, or a sweep of trainings, on Slurm or here",
    "work": "one task of what was submitted",
    "status": "how far the tasks of a plan are, and which to send again",
    "merge": "the images of all tasks as one result",
    "smooth": "accuracy of a classifier before and after ReLU becomes Softplus",
}
HELP = """usage: robustguide [--trust PACKAGE] COMMAND ...

Train, evaluate and sample with the classifiers that guide diffusion models.

commands:
{commands}

options:
  --trust PACKAGE  let checkpoints name classes of this package, which is then imported
  --version        print the version

examples:
  robustguide demo
  robustguide fit --config configs/fit/digits_robust.yaml
  robustguide test --config configs/test/digits_classifier.yaml
  robustguide cards adm-imagenet256
  robustguide COMMAND --help
"""


def help_text() -> str:
    """What `robustguide --help` prints."""
    rows = {**TRAINER_COMMANDS, **HELPERS}.items()
    return HELP.format(commands="\n".join(f"  {name:<10} {what}" for name, what in rows))


def trusted_packages(args: list[str]) -> tuple[list[str], list[str]]:
    """Takes `--trust PACKAGE` out of the arguments, wherever it stands."""
    rest, packages = [], []
    words = iter(args)
    for word in words:
        if word == "--trust":
            packages.append(next(words, ""))
        elif word.startswith("--trust="):
            packages.append(word.removeprefix("--trust="))
        else:
            rest.append(word)
    if not all(package.isidentifier() for package in packages):
        raise SystemExit(
            "robustguide: --trust needs the name of a package, such as --trust mynets"
        )
    return rest, packages


def main(args: list[str] | None = None) -> object:
    """Runs a command.

    Args:
        args: Words after `robustguide`; those of the process where not given.

    Raises:
        SystemExit: Code 2 for a wrong command line.
    """
    typed = sys.argv[1:] if args is None else list(args)
    words, packages = trusted_packages(typed)
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return None
    if words[0] == "--version":
        from robustguide import __version__

        print(__version__)
        return None
    command, *rest = words
    if command in HELPERS:
        return helped(command, rest, packages)
    if command not in TRAINER_COMMANDS:
        known = ", ".join([*TRAINER_COMMANDS, *HELPERS])
        print(f"robustguide: no command {command!r}; there are {known}.", file=sys.stderr)
        raise SystemExit(2)
    from robustguide.checkpoints import trusting
    from robustguide.main import run

    with trusting(packages):
        return run(words, typed)


def helped(command: str, words: list[str], packages: list[str]) -> object:
    """Runs a helper; packages are trusted where there are some, since that imports torch."""
    run = import_module(f"robustguide.commands.{command}").run
    if not packages:
        return run(words)
    from robustguide.checkpoints import trusting

    with trusting(packages):
        return run(words)


def guard(words: list[str]) -> None:
    """Keeps SLURM's signal until a training can answer it.

    Imports take seconds, in which the signal would end the process. It is not ignored: it would be
    lost, and Lightning would set no handler. Threads that start from here on keep it blocked, and
    so does the training that a task of a plan becomes.
    """
    if "SLURM_JOB_ID" in os.environ and {"fit", "work"} & set(words):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def entry() -> None:
    """Runs a command; a fault of the input is one clear message and exit code 1."""
    guard(sys.argv[1:])
    try:
        code = main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("ROBUSTGUIDE_TRACEBACK"):
            raise
        print(f"robustguide: {error}{repair_of(error)}", file=sys.stderr)
        print("(set ROBUSTGUIDE_TRACEBACK=1 to see where this comes from)", file=sys.stderr)
        raise SystemExit(1) from None
    leave()
    if isinstance(code, int) and code:
        raise SystemExit(code)


def leave() -> None:
    """Processes that worked together part here, and not while the interpreter is taken down.

    Where they did so there, one of two was once seen to abort after all of its work was done.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return
    if torch.distributed.is_initialized():
        # gloo notices where another one has failed, which says so itself; NCCL would wait for it
        if torch.distributed.get_backend() == "gloo":
            with suppress(RuntimeError):
                torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def repair_of(error: Exception) -> str:
    """What the system's own messages leave out."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    full = isinstance(error, OSError) and error.errno in numbers
    if full and "free space" not in str(error):
        return ". Free space there, or give another folder as trainer.default_root_dir."
    return ""


if __name__ == "__main__":
    entry()
