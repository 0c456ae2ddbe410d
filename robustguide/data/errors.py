"""The error of data that cannot be used."""


class DataError(ValueError):
    """A sample, file or folder that cannot be used: which one, why, and the repair."""

    def plain(self) -> "DataError":
        """The same error without the traceback that a worker process writes around its message."""
        marker = f"{type(self).__name__}: "
        message = str(self)
        return DataError(message.rsplit(marker, 1)[-1].strip()) if marker in message else self
