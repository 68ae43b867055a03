"""What a parent hands to its workers.

The text of the configuration, not its path: a worker that is started again later runs what the others run, whatever
has become of the file since.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from ..settings import Overrides, Settings, load_text, plain

#: A socket address: host and port.
Bound = tuple[str, int]


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

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Plan:
        return cls(told["text"], told["name"], told["upstream"], Overrides(**told["overrides"]))
