"""Something that was looked at."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        topic: What it belongs to.
        name: What was looked at.
        value: What was found.
        repair: What to do about it, if anything.
        is_needed: Whether nothing works without.
    """

    topic: str
    name: str
    value: str
    repair: str = ""
    is_needed: bool = True

    @property
    def is_fault(self) -> bool:
        """Whether it must be repaired."""
        return bool(self.repair) and self.is_needed
