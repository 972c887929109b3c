"""Where a server stands between its start and its end, for those who ask whether to send it requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    """`draining`: it has been told to stop, and is not ready for more. Requests are still answered."""

    draining: bool = False
