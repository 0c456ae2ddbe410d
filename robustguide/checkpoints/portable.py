"""Describes a module without the files that it was first filled from.

A configuration may start from weights of a library, or from a checkpoint of ours. The file that is
exported in the end holds all tensors itself, so its specification says only what to build.
"""

from importlib import import_module

from robustguide.checkpoints.description import describe
from robustguide.checkpoints.trust import LIBRARIES, loads
from robustguide.specification import Call, Specification, calls, fold

LOADERS = ("load_classifier", "load_denoiser", "load_codec", "load_autoencoder")
# Functions that fill a module by other names, and those that say how they build it.
OTHERS = {
    "torchvision_classifier": "off_the_shelf.torchvision_specification",
    "timm_classifier": "off_the_shelf.timm_specification",
    "clip_classifier": "off_the_shelf.clip_specification",
    "with_weights": "off_the_shelf.network_specification",
    "load_robustness": "robustness.robustness_specification",
}

# Their weights of torchvision bring the standardisation of another framework with them.
TRANSFORMING = ("googlenet", "inception_v3")


def portable(specification: Specification) -> Specification:
    """The same module: loaders give way to what their files say, sources of weights are left out.

    Raises:
        FileNotFoundError: A loader names a file that is not there any more.
    """

    def make(found: Call) -> Specification:
        if is_loader(found):
            which = (found.arguments.get("path"), found.arguments.get("card"))
            told = describe(*which).specification
            if found.class_path.endswith("load_autoencoder"):
                told = told["init_args"]["autoencoder"]
            return told
        arguments = found.arguments
        root, _, name = found.class_path.rpartition(".")
        if root.startswith("robustguide.checkpoints") and name in OTHERS:
            file, _, told_by = OTHERS[name].partition(".")
            module = import_module(f"robustguide.checkpoints.{file}")
            specified: Specification = getattr(module, told_by)(**arguments)
            return specified
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
    return root.partition(".")[0] == "robustguide" and name in LOADERS
