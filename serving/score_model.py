"""Asking the scoring process (`reward.score_server`, on loopback) what completions are worth.

model = ScoreModel("http://127.0.0.1:8094", timeout_s=5.0)
await model.use(Held(folder, sha256))
await model.score(messages, ["…", "…"])     [0.31, -1.02]
"""

import math
from collections.abc import Sequence

from core.messages import Message
from serving.side_process import LOAD_S, Held, SideProcess, Unanswered, unreadable


class ScoreModel(SideProcess):
    """The client."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(url, timeout_s)
        self._name = ""

    async def use(self, held: Held) -> None:
        """Have the process load a reward model, unless it is the one that is asked already.

        Raises:
            Unanswered: it did not load it.
        """
        if self.held == held:
            return
        said = await self.post("/load", {"path": held.path, "sha256": held.sha256}, LOAD_S)
        try:
            self._name = str(said["model"])
        except (KeyError, TypeError) as error:
            raise unreadable(error) from error
        self.held = held

    async def score(self, messages: Sequence[Message], completions: Sequence[str]) -> list[float]:
        """The reward of each completion of a conversation.

        Raises:
            Unanswered: it cannot be asked, or did not answer in time.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        body = {"model": self._name, "messages": turns, "completions": list(completions)}
        said = await self.post("/score", body, self.timeout_s)
        try:
            found = [float(each["value"]) for each in said["scores"]]
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(error) from error
        if len(found) != len(completions) or not all(math.isfinite(value) for value in found):
            raise Unanswered("not_scanned", "its scores are not as many as the completions, or no numbers")
        return found
