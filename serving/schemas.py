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
MOST_TEXTS = 32
LEGACY_TOKENS = 16
"""What `/v1/completions` writes where a call does not say, as at OpenAI."""
MOST_SCHEMA = 20_000
MOST_DEPTH = 32
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ModerationText = Annotated[str, StringConstraints(max_length=20_000)]
RawPrompt = Annotated[str, StringConstraints(min_length=1)]
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


class CompletionBody(Wire):
    """What calls for completions have in common."""

    model: str = Field(max_length=200)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Stop] | Stop | None = Field(None)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Replies to make, each from a seed of its own.")
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
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @property
    def choices(self) -> int:
        """How many replies are to be made to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, settings: Settings) -> dict[str, Any]:
        """Fields of the engine's request that say how it is to sample, defaults filled in."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        given = {
            name: value
            for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
            if (value := getattr(self, name)) is not None
        }
        return {"temperature": settings.default_temperature, "stop": stop, **given}


class ChatBody(CompletionBody):
    """The body of a chat completion call."""

    messages: list[WireMessage] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = Field(
        None,
        description="Tell the tokens with the log of their probabilities; in a stream with the text that they made, once that is cleared.",
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="So many of the likeliest tokens in the place of each are told with it."
    )
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    system_prompt: str | None = Field(
        None,
        max_length=60,
        description="Which system prompt is put before the conversation, instead of a drawn one: `name@3`, `name` for its newest version, or `none`. As the header X-Dunnock-System-Prompt.",
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> "ChatBody":
        """What would be left out in silence is refused."""
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs are told with logprobs; set that to true")
        if self.tools:
            raise ValueError("tools are not called here; leave them out")
        return self

    @property
    def named(self) -> list[str]:
        """The ids of earlier replies that stand for their texts."""
        return [m.completion_id for m in self.messages if m.completion_id is not None]

    def engine_requests(self, model: str, settings: Settings, texts: Mapping[str, str]) -> list[ChatRequest]:
        """The one request for the engine, defaults filled in and `max_tokens` held to the limit.

        Args:
            texts: of the replies that are `named`.
        """
        wanted = self.max_completion_tokens or self.max_tokens or settings.max_completion_tokens
        messages = tuple(
            Message(role=m.role, content=m.content if m.completion_id is None else texts[m.completion_id])
            for m in self.messages
        )
        request = ChatRequest(
            model=model,
            messages=messages,
            max_tokens=min(wanted, settings.max_completion_tokens),
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs or 0,
            response_format=self.response_format.wire() if self.response_format else None,
            **self.sampling(settings),
        )
        return [request]


class TextBody(CompletionBody):
    """The body of a call that has texts continued as they stand, without a chat template."""

    prompt: Annotated[list[RawPrompt], Field(min_length=1, max_length=MOST_TEXTS)] | RawPrompt
    max_tokens: int | None = Field(None, ge=0, description="16 where it is not named, as at OpenAI.")
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Tell the tokens, and so many of the likeliest in the place of each."
    )
    echo: bool | None = Field(None, description="Tell the prompt before its reply; with logprobs its tokens too.")
    suffix: str | None = None
    best_of: int | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _of_text(cls, prompt: Any) -> Any:
        if isinstance(prompt, list):
            if any(isinstance(each, int | list) for each in prompt):
                raise ValueError("token ids are not taken; send the text")
            return [plain_text(each) if isinstance(each, str) else each for each in prompt]
        return plain_text(prompt) if isinstance(prompt, str) else prompt

    @model_validator(mode="after")
    def _can_be_done(self) -> "TextBody":
        """What would be left out in silence is refused."""
        if self.suffix:
            raise ValueError("a suffix is not written towards; leave it out")
        if self.best_of not in (None, self.choices):
            raise ValueError("best_of is not done here; leave it out, n replies are made")
        if len(self.prompts) * self.choices > MOST_TEXTS:
            raise ValueError(f"at most {MOST_TEXTS} texts are made in a call")
        if self.max_tokens == 0 and not self.tells_prompt:
            raise ValueError("max_tokens may be 0 only with echo and logprobs")
        if self.tells_prompt and self.stream:
            raise ValueError("echo with logprobs is told whole; leave stream out")
        return self

    @property
    def prompts(self) -> list[str]:
        """One or more."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def tells_prompt(self) -> bool:
        """Whether the tokens of the prompt are wanted."""
        return bool(self.echo) and self.logprobs is not None

    def engine_requests(self, model: str, settings: Settings) -> list[ChatRequest]:
        """A request for the engine for each prompt, defaults filled in and `max_tokens` held to the limit."""
        wanted = LEGACY_TOKENS if self.max_tokens is None else self.max_tokens
        return [
            ChatRequest(
                model=model,
                messages=(Message(role="user", content=prompt),),
                raw=True,
                max_tokens=min(wanted, settings.max_completion_tokens),
                logprobs=self.logprobs is not None,
                top_logprobs=self.logprobs or 0,
                prompt_logprobs=self.tells_prompt,
                **self.sampling(settings),
            )
            for prompt in self.prompts
        ]


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
