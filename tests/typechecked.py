"""What checks the annotations of the package while its tests run."""

from io import TextIOBase
from typing import TextIO

from beartype import BeartypeConf, FrozenDict, beartype

typechecked = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float, as for mypy
        hint_overrides=FrozenDict({TextIO: TextIOBase}),  # StringIO has no `mode`
    )
)
