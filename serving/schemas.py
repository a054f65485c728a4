"""What `/v1` accepts: the OpenAI client's calls. Fields that are not listed are ignored, as that API grows."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from core.messages import Message, Role, plain_text
from core.settings import Settings
from core.settings.serving import Consent
from policy.protocol import ChatRequest

MOST_CHOICES = 8
MOST_SCHEMA = 20_000
MOST_DEPTH = 32
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ModerationText = Annotated[str, StringConstraints(max_length=20_000)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Wire(BaseModel):
    """A request body."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class WireMessage(Wire):
    """One turn; content is a string or a list of text parts, or empty where an earlier reply is named instead."""

    role: Role
    content: str
    completion_id: str | None = Field(
        None,
        max_length=40,
        description="Of an assistant's turn: the id of an earlier reply to the same caller, for its text.",
    )

    @field_validator("role", mode="before")
    @classmethod
    def _known_role(cls, role: Any) -> Any:
        return ROLES.get(role, role) if isinstance(role, str) else role

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        if content is None:
            return ""
        if isinstance(content, list):
            parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
            if len(parts) < len(content):
                raise ValueError("only parts of type text are taken")
            content = "".join(str(part.get("text", "")) for part in parts)
        return plain_text(content) if isinstance(content, str) else content

    @model_validator(mode="after")
    def _one_text(self) -> "WireMessage":
        if self.completion_id is not None and (self.role != "assistant" or self.content):
            raise ValueError("a completion_id stands for the content of an assistant's turn; leave that empty")
        return self


class StreamOptions(Wire):
    include_usage: bool = False


class SchemaFormat(Wire):
    """A JSON schema that the text is to conform to."""

    name: str | None = Field(None, max_length=64)
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")

    @field_validator("schema_")
    @classmethod
    def _within_bounds(cls, schema: dict[str, Any]) -> dict[str, Any]:
        try:
            size, depth = len(json.dumps(schema)), _depth(schema)
        except RecursionError:
            size, depth = 0, MOST_DEPTH + 1
        if size > MOST_SCHEMA or depth > MOST_DEPTH:
            raise ValueError(f"a schema has at most {MOST_SCHEMA} characters and {MOST_DEPTH} levels")
        return schema


class ResponseFormat(Wire):
    """What the text is to be: any, a JSON object, or one by a schema. The engine keeps to it or refuses."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: SchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema comes with the type json_schema, and with no other")
        return self

    def wire(self) -> dict[str, Any] | None:
        """As engines are asked; None where any text will do."""
        return None if self.type == "text" else self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


class ChatBody(Wire):
    """The body of a chat completion call."""

    model: str = Field(max_length=200)
    messages: list[WireMessage] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Stop] | Stop | None = Field(None)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Replies to make, each from a seed of its own.")
    logprobs: bool | None = Field(
        None,
        description="Tell the tokens with the log of their probabilities; in a stream with the text that they made, once that is cleared.",
    )
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    store: bool | None = Field(
        None, description="false: keep no text of this call, only what is counted, and ask no annotator about it."
    )
    consent: Consent | None = Field(
        None,
        description="What prompt and reply may be used for: none (no text is kept), service (kept, never trained on) or training. The strictest of this, the header X-Dunnock-Consent and store holds.",
    )
    user: str | None = Field(
        None, max_length=400, description="Who of the caller's users it is for; kept as a keyed hash, to erase by."
    )
    system_prompt: str | None = Field(
        None,
        max_length=60,
        description="Which system prompt is put before the conversation, instead of a drawn one: `name@3`, `name` for its newest version, or `none`. As the header X-Dunnock-System-Prompt.",
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _can_be_done(self) -> "ChatBody":
        """What would be left out in silence is refused."""
        if self.top_logprobs:
            raise ValueError("top_logprobs are not told, only those of the tokens that were written")
        if self.tools:
            raise ValueError("tools are not called here; leave them out")
        return self

    @property
    def choices(self) -> int:
        """How many replies are to be made."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def named(self) -> list[str]:
        """The ids of earlier replies that stand for their texts."""
        return [m.completion_id for m in self.messages if m.completion_id is not None]

    def engine_request(self, model: str, settings: Settings, texts: Mapping[str, str]) -> ChatRequest:
        """The same request for the engine, defaults filled in and `max_tokens` held to the limit.

        Args:
            texts: of the replies that are `named`.
        """
        wanted = self.max_completion_tokens or self.max_tokens or settings.max_completion_tokens
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        given = {
            name: value
            for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
            if (value := getattr(self, name)) is not None
        }
        given.setdefault("temperature", settings.default_temperature)
        return ChatRequest(
            model=model,
            messages=tuple(
                Message(role=m.role, content=m.content if m.completion_id is None else texts[m.completion_id])
                for m in self.messages
            ),
            max_tokens=min(wanted, settings.max_completion_tokens),
            stop=stop,
            logprobs=bool(self.logprobs),
            response_format=self.response_format.wire() if self.response_format else None,
            **given,
        )


class ModerationBody(Wire):
    """Texts to be looked at; at most so many as one question to the guard's model takes."""

    input: Annotated[list[ModerationText], Field(min_length=1, max_length=16)] | ModerationText
    model: str | None = Field(None, max_length=200, description="Any; there is one.")

    @property
    def texts(self) -> list[str]:
        """One or more."""
        return [self.input] if isinstance(self.input, str) else self.input


class FeedbackBody(Wire):
    """What somebody says of a completion; at least one of thumbs, rating and correction."""

    completion_id: str = Field(max_length=40)
    thumbs: Literal["up", "down"] | None = None
    rating: int | None = Field(None, ge=1, le=5)
    correction: str | None = Field(None, min_length=1, max_length=100_000)
    note: str | None = Field(None, max_length=10_000)
    idempotency_key: str | None = Field(None, min_length=1, max_length=100)

    @model_validator(mode="after")
    def _says_something(self) -> "FeedbackBody":
        if self.thumbs is None and self.rating is None and self.correction is None:
            raise ValueError("say something: thumbs, rating or correction")
        return self


class ErasureBody(Wire):
    """Whose texts are to go."""

    user: str = Field(min_length=1, max_length=400, description="As chat calls named them in `user`.")


# Answers --------------------------------------------------------------------------------------------------------------


class Given(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")


class ReplyMessage(Given):
    """What was written."""

    role: Literal["assistant"]
    content: str
    refusal: str | None


class TokenLogprob(Given):
    """A token of a reply and the log of its probability, in nats."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[str]


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
