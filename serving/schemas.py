"""What `/v1` accepts: the OpenAI client's calls. Fields that are not listed are ignored, as that API grows."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from core.messages import Message, Role, plain_text
from core.settings import Settings
from policy.client import ChatRequest

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
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
    n: int | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @field_validator("n")
    @classmethod
    def _one(cls, n: int | None) -> int | None:
        if n not in (None, 1):
            raise ValueError(f"{n} completions were asked for; one per call is made, so send n calls")
        return n

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
            **given,
        )


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


class Choice(Given):
    """The one reply."""

    index: int
    message: ReplyMessage
    finish_reason: str | None
    logprobs: None


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
