"""A figure with its interval and n, or the reason why there is none. Every figure of this package is one."""

from dataclasses import asdict, dataclass, field
from typing import Any

from core.intervals import wilson


@dataclass(frozen=True)
class Reason:
    """Why a figure is undefined: a sentence that goes on after "undefined, because", and the numbers in it."""

    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text % self.facts


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    `n` counts what the value rests on. Without a value, `undefined` says why; a value may lack an interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    undefined: Reason | None = None
    source: str = ""  # where there are several ways to it: which one was taken

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, the reason in English."""
        return asdict(self) | {"undefined": str(self.undefined) if self.undefined else None}


def missing(text: str, n: int = 0, **facts: Any) -> Estimate:
    """An undefined estimate; `facts` and `n` fill the sentence."""
    return Estimate(None, n=n, undefined=Reason(text, {"n": n, **facts}))


def share(successes: int, n: int, otherwise: str) -> Estimate:
    """A rate with its Wilson interval; `otherwise` says why there is none where n is 0."""
    if not n:
        return missing(otherwise)
    return Estimate(successes / n, *wilson(successes, n), n=n)
