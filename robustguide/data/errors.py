"""The error of data that cannot be used."""


class DataError(ValueError):
    """A sample, file or folder that cannot be used: which one, why, and the repair."""

    def plain(self) -> "DataError":
        """Its like, without the traceback that a worker process puts into the message."""
        message = str(self).rsplit(f"{type(self).__name__}: ", 1)[-1]
        return DataError(message.strip())


class Unreadable(DataError):
    """An image that cannot be decoded; what reads many may list it and go on."""
