"""`/v1/moderations`: what the guard says of any text, in OpenAI's shape. Nothing is stored.

Categories are the rules that hold, by their names, and `prompt_injection`, `secrets` and `pii`. A text that could not be asked about is an
error and never an unflagged one; where no guard's model was trained yet, there are no categories of rules, and the answer says so.
"""

import asyncio
import json
import secrets
from collections.abc import Sequence
from typing import Any

from core.detectors.pii import PII
from core.detectors.secrets import SECRETS
from core.errors import EngineError
from core.language import gettext
from serving.deferred import Answer
from serving.guard import injection
from serving.guard.patterns import PatternScan, judge
from serving.guard.verdicts import Verdict
from serving.guarding import RULES, Guard, Standing
from serving.side_process import Unanswered

MODEL = "dunnock-guard"


async def moderate(guard: Guard, standing: Standing, texts: Sequence[str]) -> Answer:
    """A result for each text.

    Raises:
        EngineError: the guard's model did not answer.
    """
    await guard.ready(standing)
    results = await asyncio.gather(*(_result(guard, standing, text) for text in texts))
    scanned = ["prompt_injection", "secrets", "pii", *([RULES] if standing.model else [])]
    body = {"id": f"modr-{secrets.token_hex(12)}", "model": MODEL, "results": results, "dunnock": {"scanned": scanned}}
    return Answer(json.dumps(body).encode())


async def _result(guard: Guard, standing: Standing, text: str) -> dict[str, Any]:
    verdicts = await asyncio.to_thread(_verdicts, text)
    scores = {verdict.check: _score(verdict) for verdict in verdicts}
    hits = {verdict.check: verdict.outcome == "hit" for verdict in verdicts}
    asked = [rule for rule in standing.rules if rule.does != "off"]
    if standing.model is not None and asked:
        try:
            words = await guard.ask(standing, "", text, asked=asked)
        except Unanswered as error:
            raise EngineError(
                gettext("the guard's model did not answer: %(why)s", why=error), code="guard_unavailable"
            ) from error
        scores |= {name: round(word.broken, 4) for name, word in words.items()}
        hits |= {rule.name: guard.reached(rule, words[rule.name]) for rule in asked}
    return {"flagged": any(hits.values()), "categories": hits, "category_scores": scores}


def _verdicts(text: str) -> list[Verdict]:
    return [injection.check(text), *(judge(PatternScan(name, of), text, "input") for name, of in PATTERNS)]


def _score(verdict: Verdict) -> float:
    """A check that does not measure is sure of what it says."""
    return round(verdict.score, 4) if verdict.score is not None else float(verdict.outcome == "hit")


PATTERNS = (("secrets", SECRETS), ("pii", PII))
