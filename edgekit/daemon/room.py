"""What all connections together may hold: a limit for each alone bounds nothing, since anyone may open more."""

from __future__ import annotations

__all__ = ["Room"]


class Room:
    """A number of bytes that connections take from, and give back to; used in the event loop alone.

    Args:
        limit: Bytes that may be held at once. One holder may have more while nobody else holds anything.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    @property
    def tight(self) -> bool:
        """Tell whether more than half is held: nothing is then kept for a later use."""
        return self.held > self.limit // 2

    def take(self, count: int, *, own: int = 0) -> bool:
        """Take `count` bytes more; return whether they are there.

        Args:
            count: How many.
            own: What the caller holds already.
        """
        if self.held > own and self.held + count > self.limit:
            return False
        self.held += count
        return True

    def give(self, count: int) -> None:
        """Give `count` bytes back."""
        self.held -= count
