"""A configuration as it was read, and as it is read anew.

The text, not its path, is what a parent hands to its workers: one that is started again later runs what the others
run, whatever has become of the file since.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .settings import Overrides, Settings, load_text, plain, read_text


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration as it was read: the `text` of the file `name`, or without a file one `upstream`."""

    text: str | None = None
    name: str = ""
    upstream: str = ""
    overrides: Overrides = field(default_factory=Overrides)

    def settings(self) -> Settings:
        """Raises Faults."""
        if self.text is None:
            return plain(self.upstream, environ=os.environ, overrides=self.overrides)
        return load_text(self.text, name=self.name, environ=os.environ, overrides=self.overrides)

    def anew(self) -> Plan:
        """The plan as its file says it now. Raises Faults where the file cannot be read."""
        return replace(self, text=read_text(Path(self.name)))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Plan:
        return cls(told["text"], told["name"], told["upstream"], Overrides(**told["overrides"]))
