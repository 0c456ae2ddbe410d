"""Describes a module without the files that it was first filled from.

A configuration may start from weights of a library, or from a checkpoint of ours. The file that is
exported in the end holds all tensors itself, so its specification says only what to build.
"""

from robustguide.checkpoints.metadata import read_metadata
from robustguide.checkpoints.specification import Call, Specification, calls, fold
from robustguide.checkpoints.trust import LIBRARIES, loads

# Their weights of torchvision bring the standardisation of another framework with them.
TRANSFORMING = ("googlenet", "inception_v3")


def portable(specification: Specification) -> Specification:
    """The same module: loaders give way to what their files say, sources of weights are left out.

    Raises:
        FileNotFoundError: A loader names a file that is not there any more.
    """

    def make(found: Call) -> Specification:
        if is_loader(found):
            return read_metadata(found.arguments["path"]).specification
        arguments = found.arguments
        root, _, name = found.class_path.rpartition(".")
        if root.partition(".")[0] in LIBRARIES:
            arguments = {key: value for key, value in arguments.items() if not loads(key, value)}
        if root == "torchvision.models" and found.arguments.get("weights"):
            if found.arguments.get("name", name) in TRANSFORMING:
                arguments.setdefault("transform_input", True)
        return {"class_path": found.class_path, "init_args": arguments}

    plain: Specification = fold(specification, make)
    return plain


def trust_stated(specification: Specification) -> list[str]:
    """Packages that the loaders in a user's own specification were told to trust."""
    plain = fold(
        specification, lambda found: {"class_path": found.class_path, "init_args": found.arguments}
    )
    return [
        package
        for found in calls(plain)
        if is_loader(found)
        for package in found.arguments.get("trust") or ()
    ]


def is_loader(found: Call) -> bool:
    """Whether a class path is one of our functions that read a checkpoint."""
    root, _, name = found.class_path.rpartition(".")
    return root.partition(".")[0] == "robustguide" and name in ("load_classifier", "load_denoiser")
