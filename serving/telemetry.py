"""What a chat call tells those who trace it. Without tracing nothing here does anything, and OpenTelemetry is not imported.

    tracing = open_tracing(settings)              None where no traces are made
    trace = tracing.begin(path, headers)          a Trace; UNTRACED where they are not
    with trace.part("store"): ...                 what a step of it takes
    trace.over(status)                            ends it, and every part that is still open

A part may be ended by another task than the one that began it, as those of a stream are. `serving.tracing` is the one that
traces.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from core.messages import Message
from core.settings import TelemetrySettings

Facts = Mapping[str, Any]
"""Attributes; those that are None are left out."""


class Part:
    """A step of a call; this one is told to nobody."""

    def note(self, facts: Facts) -> None:
        """What is known of it now."""

    def at(self, url: str) -> None:
        """Whom it asks."""

    def headers(self) -> dict[str, str]:
        """W3C trace context for whom it asks; they go on from here."""
        return {}

    def end(self, error: BaseException | None = None) -> None:
        """It is over; a second call does nothing."""


class Trace:
    """What is told of one call; this one is told to nobody.

    Attributes:
        id: 32 hex digits; empty where it is not traced.
        texts: whether texts may be told.
    """

    id = ""
    texts = False

    def begin(self, name: str) -> Part:
        """A part that whoever is told to ends."""
        return NO_PART

    @contextmanager
    def part(self, name: str) -> Iterator[Part]:
        """A part that ends with the block."""
        part = self.begin(name)
        try:
            yield part
        except BaseException as error:
            part.end(error)
            raise
        part.end()

    def asked(self, model: str, facts: Facts) -> None:
        """Which model is asked for, and how."""

    def first_text(self, after_s: float) -> None:
        """The caller gets the first text of the reply."""

    def told(self, facts: Facts, messages: Sequence[Message], replies: Sequence[tuple[str, str]]) -> None:
        """All replies have ended.

        Args:
            messages: the conversation; none where its caller lets no texts be kept.
            replies: texts and finish reasons.
        """

    def over(self, status: int, failed: str = "") -> None:
        """The call has ended.

        Args:
            status: of HTTP; 499 where its caller has left.
            failed: what went wrong, in a word.
        """


NO_PART = Part()
UNTRACED = Trace()


def open_tracing(settings: TelemetrySettings) -> Any:
    """The `serving.tracing.Tracing` of a process; None where the settings want no traces."""
    if not settings.endpoint:
        return None
    from serving.tracing import Tracing, otlp

    return Tracing(settings, otlp(settings))
