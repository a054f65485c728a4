"""What groups of settings and settings of stages have in common."""

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """Settings that belong together, under one prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageSettings(SettingsGroup):
    """Settings of one training stage, written to `run.json` beside what the stage makes."""
