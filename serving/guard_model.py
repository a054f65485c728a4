"""Asking the guard's model (`reward.guard_server`, a process of its own on loopback) what a text breaks, with a deadline.

model = GuardModel("http://127.0.0.1:8093", timeout_s=1.0)
await model.use(Held(folder, sha256))                     loads it there; the one before answers until then
await model.judge(context, text, {"slug": "Do not …"})    {"slug": Word(0.02, 0.91, False)}
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from serving.side_process import LOAD_S, Held, SideProcess, Unanswered, unreadable

MOST_RULES = 128
"""That its process takes in one item."""


@dataclass(frozen=True)
class Word:
    """P(broken) of a rule, the threshold that it has, and whether that is reached."""

    broken: float
    threshold: float
    hit: bool


class GuardModel(SideProcess):
    """The client."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(url, timeout_s)
        self._name = ""
        self._common = 1.0
        self._thresholds: dict[str, float] = {}

    async def use(self, held: Held) -> None:
        """Have the process load a model and ask that one from now on; the one before is let go.

        Raises:
            Unanswered: it did not load it.
        """
        said = await self.post("/load", {"path": held.path, "sha256": held.sha256}, LOAD_S)
        before = self._name
        try:
            self._thresholds = {name: float(value) for name, value in said["thresholds"].items()}
            self._name, self._common = str(said["model"]), float(said["threshold"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unreadable(error) from error
        self.held = held
        if before and before != self._name:
            with suppress(Unanswered):
                await self.post("/unload", {"model": before}, LOAD_S)

    async def judge(self, context: str, text: str, rules: Mapping[str, str], start: int = 0) -> dict[str, Word]:
        """A word on each rule, by name, for what was written so far.

        Args:
            context: the end of the conversation.
            rules: their words, by name.
            start: the first character that was not asked about before; the model is shown all from there on.

        Raises:
            Unanswered: it cannot be asked, or did not answer in time.
        """
        if self.held is None:
            raise Unanswered("not_scanned", "no model is loaded")
        asked = [{"name": name, "text": words} for name, words in rules.items()]
        parts = [asked[i : i + MOST_RULES] for i in range(0, len(asked), MOST_RULES)]
        items = [{"context": context, "text": text, "start": start, "rules": part} for part in parts]
        body = {"model": self._name, "deadline_ms": 1000 * self.timeout_s, "items": items}
        said = await self.post("/v1/score", body, self.timeout_s)
        try:
            broken = {name: float(p) for item in said["items"] for name, p in item["broken"].items()}
            hits = {name for item in said["items"] for name in item["hits"]}
            words = {name: Word(broken[name], self._thresholds.get(name, self._common), name in hits) for name in rules}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unreadable(error) from error
        if not all(math.isfinite(word.broken) for word in words.values()):
            raise Unanswered("not_scanned", "a probability is no number")
        return words
