"""All settings, and the only reader of the environment.

Every field is set by `DUNNOCK_<NAME>` or a line of `.env` in the working folder; nested stage
settings by `DUNNOCK_<STAGE>__<NAME>`, e.g. `DUNNOCK_UPDATE__BETA=0.2`. `docs/settings.md` lists them
all and a test keeps that list complete. Units stand in the names: `_s` seconds, `_tokens`, `_frac`.
"""

from core.settings.deployment import LOOPBACK, PLACEHOLDER_SECRETS, Settings, get_settings
from core.settings.groups import SettingsGroup, StageSettings
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
    TrainingSettings,
    UpdateSettings,
)

__all__ = [
    "LOOPBACK",
    "PLACEHOLDER_SECRETS",
    "AssignmentSettings",
    "BestOfSettings",
    "BundleSettings",
    "CacheSettings",
    "CareSettings",
    "CollectSettings",
    "EnergySettings",
    "EnginesSettings",
    "GateSettings",
    "GgufSettings",
    "GoldSettings",
    "GuardSettings",
    "LimitsSettings",
    "OidcSettings",
    "PpoSettings",
    "PrivacySettings",
    "QualitySettings",
    "RewardSettings",
    "SamplingSettings",
    "Settings",
    "SettingsGroup",
    "SnapshotSettings",
    "StageSettings",
    "SystemPromptSettings",
    "TelemetrySettings",
    "TrackingSettings",
    "TrainingSettings",
    "UpdateSettings",
    "get_settings",
]
