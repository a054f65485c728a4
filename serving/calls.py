"""One call of an API as it is told: what is known of it is put together here, and `serving.observing` tells it when it is over.

A view finds its call with `this_call()`; the coroutine that goes on with it holds on to it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import g, has_request_context

from serving.telemetry import UNTRACED, Trace

if TYPE_CHECKING:
    from policy.protocol import ChatRequest
    from serving.replies import Ended


@dataclass
class Call:
    """One call.

    Attributes:
        route: the rule of its path, so that there are few.
        facts: of a chat call, what a log says of it.
        wants_texts: whether the log is to have `texts`, prompt and replies, where its caller lets them be kept.
        failed: what went wrong though an answer was begun.
    """

    method: str = ""
    route: str = ""
    trace: Trace = UNTRACED
    began_s: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    wants_texts: bool = False
    failed: str = ""
    over: bool = False

    def asked(self, model: str, request: "ChatRequest", *, choices: int, stream: bool, tenant_id: int | None) -> None:
        """A chat call may be answered: who asks for what.

        Args:
            model: as the caller named it.
        """
        self.facts |= {"model": model, "version": request.model, "tenant_id": tenant_id, "stream": stream}
        if self.trace is UNTRACED:
            return
        self.trace.asked(model, {
            "gen_ai.provider.name": "dunnock", "gen_ai.request.choice.count": choices if choices > 1 else None,
            "gen_ai.request.max_tokens": request.max_tokens, "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.top_p": request.top_p, "gen_ai.request.seed": request.seed,
            "gen_ai.request.stop_sequences": request.stop or None, "gen_ai.request.stream": stream,
            "gen_ai.request.presence_penalty": request.presence_penalty,
            "gen_ai.request.frequency_penalty": request.frequency_penalty, "dunnock.tenant.id": tenant_id,
        })  # fmt: skip

    def first_text(self) -> None:
        """A stream shows its first text."""
        self.trace.first_text(time.monotonic() - self.began_s)

    def told(
        self, ended: Sequence["Ended"], usage: tuple[int | None, int | None], guard: dict[str, Any] | None
    ) -> None:  # fmt: skip
        """Its replies have ended.

        Args:
            usage: prompt and completion tokens of all, as far as they are known.
            guard: the gravest word on them, as `serving.replies.guard_body` has it.
        """
        first, reasons = ended[0].reply, [each.finish_reason for each in ended]
        prompt_tokens, completion_tokens = usage
        prompts = {each.reply.place: each.reply.request.messages for each in ended}
        messages = [m for each in prompts.values() for m in each]
        taken = [each.energy_j for each in ended if each.energy_j is not None]
        energy_j = sum(taken) if taken else None
        outcome, cut = (guard["outcome"], guard["cut"]) if guard else (None, None)
        self.facts |= {
            "id": first.id, "finish_reasons": reasons, "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens, "guard": outcome, "cut": cut,
            **({"cache": first.hit.kind} if first.hit else {}),
            **({} if energy_j is None else {"energy_j": energy_j}),
        }  # fmt: skip
        if "error" in reasons:
            self.failed = "engine"
        shown = [(each.text, each.finish_reason) for each in ended]
        if first.keep_texts and self.wants_texts:
            self.texts = {
                "messages": [m.model_dump() for m in messages], "replies": [text for text, _ in shown]
            }  # fmt: skip
        if self.trace is UNTRACED or self.over:
            return
        self.trace.told(
            {
                "gen_ai.response.id": first.id, "gen_ai.response.model": first.version.name,
                "gen_ai.response.finish_reasons": reasons, "gen_ai.usage.input_tokens": prompt_tokens,
                "gen_ai.usage.output_tokens": completion_tokens, "dunnock.guard.outcome": outcome, "dunnock.guard.cut": cut,
                "dunnock.energy.joules": energy_j,
                "dunnock.cache": first.hit.kind if first.hit else None,
            },
            messages if first.keep_texts else (), shown,
        )  # fmt: skip


def this_call() -> Call:
    """The call of this request."""
    found: Call | None = g.get("dunnock_call") if has_request_context() else None
    return found or Call()
