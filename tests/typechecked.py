"""What checks the annotations of the package while its tests run."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy
