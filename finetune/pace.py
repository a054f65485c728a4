"""How long a stage still takes, from how fast its finished share grew lately.

A stage that is taken up begins at the share of its checkpoint, and only what it did since then is measured. Until there is
enough of that, its earlier attempts stand in, and before there are any, what the same stage took last time.
"""

from collections import deque

WINDOW_S = 120.0
LEAST_POINTS = 10
LEAST_S = 2.0


class Pace:
    """Time left of one attempt of a stage.

    Args:
        began: when the attempt began, seconds of the clock that `left_s` is called with.
        before: seconds and finished share of the attempts before this one.
        last_s: what the stage took in the last round that finished it.
    """

    def __init__(self, began: float, *, before: tuple[float, float] = (0.0, 0.0), last_s: float | None = None) -> None:
        self.began, self.before, self.last_s = began, before, last_s
        self.told: deque[tuple[float, float]] = deque()  # when, finished share

    def left_s(self, now: float, done_frac: float) -> float | None:
        """Seconds left at the finished share that is told now; None where nothing says it."""
        self.told.append((now, done_frac))
        while len(self.told) > LEAST_POINTS and now - self.told[1][0] > WINDOW_S:
            self.told.popleft()
        first, share = self.told[0]
        if now - first >= LEAST_S and done_frac > share:
            return (1 - done_frac) * (now - first) / (done_frac - share)
        return self.guess(now, done_frac)

    def guess(self, now: float, done_frac: float) -> float | None:
        """Seconds left by what was before this attempt."""
        seconds, done = self.before
        if seconds > 0 and done > 0:
            return (1 - done_frac) * seconds / done
        return max(0.0, self.last_s - (now - self.began)) if self.last_s is not None else None
