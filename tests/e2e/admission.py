"""The direct admission of `gateway/edge/direct.py`, recorded or turned off."""

from __future__ import annotations

from typing import Any

from gateway.edge.direct import admit_directly


class Admission:
    """The keys that were admitted directly, in order. While it is not `direct`, requests go the general way."""

    def __init__(self) -> None:
        self.direct = True
        self.keys: list[str] = []

    def admit(self, *arguments: Any) -> Any:
        admitted = admit_directly(*arguments) if self.direct else None
        if admitted is not None:
            self.keys.append(admitted[1].summary.key.text.decode())
        return admitted
