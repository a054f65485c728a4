"""Drives a window as a server would, with an answer to every question."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serving.guard.verdicts import Verdict
from serving.guard.window import Action, Ask, Cut, Release, Window

Judge = Callable[[Ask], list[Verdict]]


def rules_clear(ask: Ask) -> list[Verdict]:
    return [Verdict("rules", "output", "clear", "be kind", 7, score=0.1, threshold=0.5, latency_s=0.01)]


@dataclass
class Seen:
    """What came out of a window, in order."""

    released: str = ""
    asks: list[Ask] = field(default_factory=list)
    cut: Cut | None = None
    lags: list[int] = field(default_factory=list)
    """Characters held after each piece."""


def drive(window: Window, pieces: Iterable[str], judge: Judge = rules_clear, *, whole: bool = False) -> Seen:
    """All pieces, then the end; each question is answered before the next piece.

    Args:
        whole: the pieces come as one, which is known to be the last.
    """
    seen, fed = Seen(), 0

    def take(actions: list[Action]) -> None:
        for action in actions:
            assert seen.cut is None, "something came after the cut"
            match action:
                case Release(text):
                    assert text
                    seen.released += text
                case Ask(upto=upto):
                    seen.asks.append(action)
                    take(window.answer(upto, judge(action)))
                case Cut():
                    seen.cut = action

    for piece in ["".join(pieces)] if whole else pieces:
        take(window.feed(piece, last=whole))
        fed += len(piece)
        seen.lags.append(fed - len(seen.released))
    take(window.finish())
    assert window.released == len(seen.released)
    return seen
