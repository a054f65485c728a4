"""Settings of what is recorded of a run beside its result: trackers, energy."""

from pydantic import Field

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
    """The energy that a stage takes and the CO2 of making it, both as codecarbon estimates them, without a network."""

    measure: bool = Field(
        True, description="Estimate them, by a process beside each stage that takes longer than a few seconds."
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
