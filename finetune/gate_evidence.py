"""Gathers what the gate judges: suite completions through the engine, and likelihoods under both policies.

Suite completions are greedy, hence reproducible, and kept per version and settings in the artifact
folder: an incumbent is asked once, not in each round.
"""

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import select

from core.artifacts import write_json
from core.messages import Message, user
from core.settings import GateSettings
from evals.likelihood import Likelihoods, measure
from evals.prober import Prober
from evals.report import SuiteAnswer, examples, judged, summarise
from evals.suites import SuitePrompt, benign, capability, harmful
from feedback.preferences import Preference
from finetune.context import StageContext
from finetune.gate import Evidence
from policy.base import base_model_path
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest
from policy.versions import BASE_NAME
from training.device import find_device, measuring_dtype
from training.run import Progress, part_of, silent

SHARE_CANDIDATE, SHARE_INCUMBENT, SHARE_LIKELIHOODS = 0.4, 0.8, 0.95  # of the stage's progress


def gather_evidence(
    context: StageContext,
    settings: GateSettings,
    candidate: PolicyVersion,
    incumbent: PolicyVersion,
    heldout: Sequence[Preference],
) -> tuple[Evidence, dict[str, Any]]:
    """The evidence for the gate, and what of it the report keeps (rates, likelihoods, examples)."""
    with context.db.read() as session:
        base = session.scalars(select(PolicyVersion).where(PolicyVersion.name == BASE_NAME)).one()
    prompts = [*harmful("frozen", settings.suite_limit), *benign("frozen", settings.suite_limit)]
    mine = suite_answers(context, candidate, prompts, settings, (0.0, SHARE_CANDIDATE))
    theirs = suite_answers(context, incumbent, prompts, settings, (SHARE_CANDIDATE, SHARE_INCUMBENT))
    bare = (
        theirs if incumbent.id == base.id else suite_answers(context, base, prompts, settings, (SHARE_INCUMBENT,) * 2)
    )
    context.progress(SHARE_INCUMBENT, "likelihoods")
    likelihoods, raised, compared = _likelihoods(context, candidate, mine, bare, prompts, heldout)
    facts = {
        "candidate": summarise(mine),
        "incumbent": summarise(theirs),
        "base": summarise(bare),
        "incumbent_version": incumbent.name,
        "likelihoods": asdict(likelihoods),
        "heldout_raised": raised,
        "heldout_n": compared,
        "heldout_dropped_long": len(heldout) - compared,
        "examples": examples(theirs, mine),
    }
    return Evidence(mine, theirs, bare, likelihoods, raised, compared), facts


def suite_answers(
    context: StageContext,
    version: PolicyVersion,
    prompts: Sequence[SuitePrompt],
    settings: GateSettings,
    share: tuple[float, float],
) -> list[SuiteAnswer]:
    """A version's greedy completions of the suites, from the store or the engine, judged anew each time."""
    key = hashlib.sha256(
        json.dumps(
            [version.name, version.adapter_sha256, version.base_sha256, settings.max_tokens, [p.text for p in prompts]]
        ).encode()
    )
    path = context.artifact_dir / "suites" / f"{version.name}-{key.hexdigest()[:16]}.json"
    if not path.exists():
        context.ensure_loaded(version)
        requests = [
            ChatRequest(
                model=version.name,
                messages=(Message(role="user", content=p.text),),
                temperature=0.0,
                max_tokens=settings.max_tokens,
            )
            for p in prompts
        ]
        n_done = 0

        def tell(_: int, __: ChatReply) -> None:
            nonlocal n_done
            n_done += 1
            done = share[0] + (share[1] - share[0]) * n_done / len(requests)
            context.progress(done, f"{version.name}: {n_done}/{len(requests)} suite prompts")

        replies = context.client.complete_many(requests, settings.concurrency, on_done=tell)
        write_json(path, [[reply.text, reply.completion_tokens] for reply in replies])
    return judged(prompts, [(text, n) for text, n in json.loads(path.read_text())])


def _likelihoods(
    context: StageContext,
    candidate: PolicyVersion,
    mine: Sequence[SuiteAnswer],
    bare: Sequence[SuiteAnswer],
    prompts: Sequence[SuitePrompt],
    heldout: Sequence[Preference],
) -> tuple[Likelihoods, int, int]:
    """Likelihoods, held-out pairs that are raised, and held-out pairs that are short enough to be compared."""
    device = find_device(context.settings.device)
    adapter = None if candidate.adapter_path is None else context.artifact_dir / candidate.adapter_path
    prober = Prober(base_model_path(context.settings), adapter, device, measuring_dtype(device))
    likelihoods = measure(
        prober,
        [(user(a.prompt), a.completion) for a in mine if not a.harmful],
        [(user(a.prompt), a.completion) for a in bare if not a.harmful],
        [(user(p.text), p.reference) for p in prompts if p.reference],
        capability(),
        part_of(context.progress, SHARE_INCUMBENT, SHARE_LIKELIHOODS),
    )
    limit = int(context.stage_settings("update")["max_length_tokens"])
    fitting = [p for p in heldout if prober.tokens(p.prompt, p.chosen, p.rejected) <= limit]
    raised = heldout_raised(prober, fitting, part_of(context.progress, SHARE_LIKELIHOODS, 1.0))
    del prober
    gc.collect()
    return likelihoods, raised, len(fitting)


def heldout_raised(prober: Prober, pairs: Sequence[Preference], progress: Progress = silent) -> int:
    """Pairs where log p(chosen) − log p(rejected) is higher under the candidate than under the base.

    The implicit reward margin of DPO, Rafailov et al. 2023, arXiv:2305.18290, eq. 7 (beta = 1).
    """
    scored = prober.compare([(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)], progress=progress)
    return sum(
        float(c.candidate.sum() - r.candidate.sum()) > float(c.base.sum() - r.base.sum())
        for c, r in zip(scored[::2], scored[1::2], strict=True)
    )
