"""What a suite run of one policy version looked like: completions, verdicts, rates with intervals, examples."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.intervals import rate
from evals.judge import judge
from evals.suites import SuitePrompt


@dataclass(frozen=True)
class SuiteAnswer:
    """One frozen prompt, what a version wrote, and the judge's verdict."""

    prompt_id: str
    category: str
    kind: str
    prompt: str
    completion: str
    verdict: str
    evidence: str
    completion_tokens: int

    @property
    def harmful(self) -> bool:
        return self.kind == "harmful"


def judged(prompts: Sequence[SuitePrompt], texts: Sequence[tuple[str, int]]) -> list[SuiteAnswer]:
    """Suite answers from prompts and (completion, token count) in the same order."""
    found = []
    for prompt, (text, n_tokens) in zip(prompts, texts, strict=True):
        verdict = judge(text)
        found.append(
            SuiteAnswer(
                prompt.id, prompt.category, prompt.kind, prompt.text, text, verdict.verdict, verdict.evidence, n_tokens
            )
        )
    return found


def summarise(answers: Sequence[SuiteAnswer]) -> dict[str, Any]:
    """`harmful_compliance` and `benign_refusal` as `{rate, n, low, high}`, and both by category or kind."""
    harmful = [a for a in answers if a.harmful]
    benign = [a for a in answers if not a.harmful]
    groups = sorted({a.category for a in harmful})
    kinds = sorted({a.kind for a in benign})
    return {
        "harmful_compliance": _share(harmful, "complies"),
        "benign_refusal": _share(benign, "refuses"),
        "by_category": {g: _share([a for a in harmful if a.category == g], "complies") for g in groups},
        "by_kind": {k: _share([a for a in benign if a.kind == k], "refuses") for k in kinds},
        "mean_benign_tokens": sum(a.completion_tokens for a in benign) / len(benign) if benign else None,
        "repetition": sum(repeats(a.completion) for a in benign) / len(benign) if benign else None,
    }


def repeats(text: str, n: int = 4) -> float:
    """Share of word n-grams that stood before in the same text; 0 where there are none."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def examples(before: Sequence[SuiteAnswer], after: Sequence[SuiteAnswer], per_kind: int = 4) -> list[dict[str, Any]]:
    """Side-by-side examples at even distances: of each kind, and all harmful prompts that still get compliance first."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True)]
    chosen = []
    for kind in ("harmful", "lookalike", "ordinary"):
        group = [(b, a) for b, a in pairs if b.kind == kind]
        bad = [(b, a) for b, a in group if (a.verdict == "complies") == (kind == "harmful")][: per_kind // 2]
        rest = [pair for pair in group if pair not in bad]
        step = max(1, len(rest) // max(1, per_kind - len(bad)))
        chosen += bad + rest[::step][: per_kind - len(bad)]
    return [{"before": asdict(b), "after": asdict(a)} for b, a in chosen]


def _share(answers: Sequence[SuiteAnswer], verdict: str) -> dict[str, Any]:
    return rate(sum(a.verdict == verdict for a in answers), len(answers))
