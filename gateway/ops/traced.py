"""Whether requests are traced: by a `Traces`, or by nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..ports import Clock, Observer, untraced

if TYPE_CHECKING:
    from .tracing import Traces


class Wanted(Protocol):
    """What a configuration says of traces."""

    @property
    def endpoint(self) -> str: ...

    @property
    def sample(self) -> float: ...

    @property
    def service(self) -> str: ...


class NoTraces:
    """Records none."""

    observers: tuple[Observer, ...] = ()

    def open(self) -> None: ...

    begin = staticmethod(untraced)

    async def close(self, seconds: float = 0.0) -> None: ...


def traces(
    wanted: Wanted | None, clock: Clock, say: Callable[..., None], *, of: str, worker: int | None
) -> NoTraces | Traces:
    """Who records, as far as it is wanted. What the extra brings is loaded only then: it takes longer to load than the
    gate itself."""
    if wanted is None:
        return NoTraces()
    from .tracing import Traces

    return Traces(wanted.endpoint, wanted.sample, wanted.service, clock, say, of=of, worker=worker)
