"""How the help of a helper looks."""

from argparse import RawDescriptionHelpFormatter

from jsonargparse import DefaultHelpFormatter


class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Shows defaults, and keeps the lines of examples."""
