"""What `/v1` accepts: the OpenAI client's calls. Fields that are not listed are ignored, as that API grows."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from core.messages import Message, Role, plain_text
from core.settings import Settings
from policy.protocol import ChatRequest

MOST_CHOICES = 8
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


class ResponseFormat(Wire):
    type: str = Field("text", max_length=40)


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
        None, description="Tell the tokens of a whole reply with the log of their probabilities."
    )
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    store: bool | None = Field(
        None, description="false: keep no text of this call, only what is counted, and ask no annotator about it."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _can_be_done(self) -> "ChatBody":
        """What would be left out in silence is refused."""
        if self.stream and self.choices > 1:
            raise ValueError(f"{self.choices} replies were asked for as a stream; ask for them whole, or for one")
        if self.stream and self.logprobs:
            raise ValueError("logprobs come with whole replies only; leave out stream")
        if self.top_logprobs:
            raise ValueError("top_logprobs are not told, only those of the tokens that were written")
        if self.response_format is not None and self.response_format.type != "text":
            raise ValueError(f"response_format {self.response_format.type!r} is not made here; only text is")
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


class Origin(Given):
    """Which version wrote it."""

    policy_version: str


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
