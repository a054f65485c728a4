"""What `/v1` answers, as its document tells it; `serving.replies` and `policy.shapes` write it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Given(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")


class ReplyMessage(Given):
    """What was written."""

    role: Literal["assistant"]
    content: str
    refusal: str | None


class TopLogprob(Given):
    """One of the likeliest tokens in a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Given):
    """A token of a reply and the log of its probability, in nats."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Given):
    """The tokens of a reply, as they were written."""

    content: list[TokenLogprob]


class GuardWord(Given):
    """What the guard said: the gravest outcome of its checks, and of a reply that was cut which check it was, and what it found."""

    outcome: Literal["clear", "not_scanned", "timed_out", "hit"]
    cut: bool
    check: str | None
    kind: str | None


class Choice(Given):
    """One of the replies; feedback names it by its completion_id, which for the first is the answer's id."""

    index: int
    completion_id: str
    message: ReplyMessage
    finish_reason: str | None
    logprobs: ChoiceLogprobs | None
    guard: GuardWord | None


class TextLogprobs(Given):
    """The tokens of a text side by side; the first of a prompt has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Given):
    """One of the texts, those of the first prompt first."""

    index: int
    completion_id: str
    text: str
    finish_reason: str | None
    logprobs: TextLogprobs | None
    guard: GuardWord | None


class Usage(Given):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class EnergyWord(Given):
    """What the engine took for it, estimated."""

    joules: float
    co2_g: float
    estimated: Literal[True]


class Origin(Given):
    """Which version wrote it; whether it was given before; and, where that was asked for and there is an estimate, what it took."""

    policy_version: str
    system_prompt: str | None = Field(
        None,
        description="The version of the house's system prompt that it was given, or `none`; left out where no shares hold, or the request had its own.",
    )
    cache: Literal["exact", "semantic"] | None = None
    energy: EnergyWord | None = None


class ChatAnswer(Given):
    """A completion; streamed, it comes as chunks in OpenAI's form."""

    id: str
    object: str
    created: int
    model: str
    dunnock: Origin
    choices: list[Choice]
    usage: Usage


class TextAnswer(Given):
    """Continued texts; streamed, they come as chunks in OpenAI's form."""

    id: str
    object: str
    created: int
    model: str
    dunnock: Origin
    choices: list[TextChoice]
    usage: Usage


class ModerationResult(Given):
    """What is found in a text, by the names of rules and checks."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]


class Scanned(Given):
    """What was looked for."""

    scanned: list[str]


class Moderation(Given):
    """A result for each text."""

    id: str
    model: str
    results: list[ModerationResult]
    dunnock: Scanned


class Model(Given):
    """A name that `model` may be."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Given):
    """The names that `model` may be."""

    object: Literal["list"]
    data: list[Model]


class FeedbackAnswer(Given):
    """What was stored."""

    object: Literal["feedback"]
    judgment_ids: list[int]


class ErasureAnswer(Given):
    """What was taken away; nothing where the user is not known."""

    object: Literal["erasure"]
    completions: int
    prompts: int
    tasks_cancelled: int
    frozen_snapshots: int = Field(
        description="Datasets, frozen before, that hold such a text; whoever runs the service removes them."
    )
