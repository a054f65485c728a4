"""Settings of what is recorded beside a result: trackers, energy, traces of the chat API."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.settings.groups import SettingsGroup


class TrackingSettings(SettingsGroup):
    """Trackers that are told the steps of training, besides the pages. Each has a process of its own and its own variables, e.g. `MLFLOW_TRACKING_URI`; one that fails or hangs ends no round."""

    report_to: str = Field(
        "",
        pattern=r"^([a-z0-9_]+(\s*,\s*[a-z0-9_]+)*)?$",
        description="Their names as transformers and accelerate have them, with commas between: `mlflow`, `tensorboard`, `wandb`, `trackio`, `comet_ml`, `aim`, `clearml`, `dvclive`, `swanlab`. Each has to be installed.",
    )
    project: str = Field("dunnock", min_length=1, description="The project, or experiment, that runs are put under.")
    wait_s: float = Field(
        60.0, gt=0, description="Seconds that a tracker has after a stage to take what it was told; then it is ended."
    )

    @property
    def names(self) -> list[str]:
        """The trackers, each once."""
        return list(dict.fromkeys(name.strip() for name in self.report_to.split(",") if name.strip()))


class EnergySettings(SettingsGroup):
    """The energy that a stage or a reply takes and the CO2 of making it, both as codecarbon estimates them, without a network."""

    measure: bool = Field(
        True,
        description="Estimate them, by a process beside each stage that takes longer than a few seconds; of replies, where the watts below are set.",
    )
    country: str = Field(
        "",
        pattern=r"^([A-Z]{3})?$",
        description="Where the electricity is made, as ISO 3166 alpha-3, e.g. `DEU`. Empty: the world's average.",
    )
    cpu_watts: float = Field(
        0.0,
        ge=0,
        description="Most power that the processor takes, where its counters cannot be read; in a virtual machine the share of its cores. 0: what codecarbon takes it for.",
    )
    engine_watts: float = Field(
        0.0,
        ge=0,
        description="Power of the engine's machine while it computes, from which the energy of a reply is estimated; `python -m serving.energy` tells what codecarbon takes a processor for. 0: `DUNNOCK_ENERGY__CPU_WATTS`, and where that is 0 too there is no estimate.",
    )
    g_co2_per_kwh: float = Field(
        0.0,
        ge=0,
        description="Grams of CO2 for a kWh of the electricity there, of replies. 0: by codecarbon's table for the country.",
    )
    tell_callers: bool = Field(
        False,
        description="Replies say what they took, also to callers who do not ask for it by `X-Dunnock-Energy: true`.",
    )


class _OpenTelemetry(BaseSettings):
    """What OpenTelemetry's own variables say."""

    model_config = SettingsConfigDict(env_prefix="OTEL_EXPORTER_")

    otlp_endpoint: str = ""


class TelemetrySettings(SettingsGroup):
    """Traces of the chat API for OpenTelemetry, sent over OTLP/HTTP. Headers, certificates and limits of sending are read by its exporter from its own variables, e.g. `OTEL_EXPORTER_OTLP_HEADERS`."""

    otlp_endpoint: str = Field(
        "",
        description="Where traces are sent, without `/v1/traces`, e.g. `http://127.0.0.1:4318`. Empty: `OTEL_EXPORTER_OTLP_ENDPOINT`, and where that is empty too no traces are made.",
    )
    service_name: str = Field("dunnock", min_length=1, description="The name that they come under.")
    sample_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of calls that are traced, of those whose caller did not decide it by a `traceparent`.",
    )
    texts: bool = Field(
        False,
        description="Prompts and replies stand in traces, of calls that let texts be stored. They are as they were sent.",
    )

    @property
    def endpoint(self) -> str:
        """The base URL that traces are sent to; empty where none are made."""
        return (self.otlp_endpoint or _OpenTelemetry().otlp_endpoint).rstrip("/")
