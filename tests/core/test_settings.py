"""Settings: what production refuses, how the environment reaches nested fields, where defaults lead."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import SettingsError
from core.settings import PLACEHOLDER_SECRETS, Settings

GOOD_SECRET = "d5f0c1e2" * 5


def make(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("DUNNOCK_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("secret", [*sorted(PLACEHOLDER_SECRETS), "Change-Me", "k" * 31])
def test_production_refuses_a_placeholder_secret(secret: str) -> None:
    with pytest.raises(SettingsError, match="DUNNOCK_SECRET_KEY.*production needs a random"):
        make(env="production", secret_key=secret)
    assert make(secret_key=secret).env == "development"


def test_production_takes_a_long_secret_and_wants_keys() -> None:
    good = {"env": "production", "secret_key": GOOD_SECRET, "public_url": "https://birds.example"}
    assert make(**good).session_secret() == GOOD_SECRET
    with pytest.raises(SettingsError, match="DUNNOCK_API_AUTH"):
        make(**good, api_auth="open")
    for url in ("", "http://birds.example"):
        with pytest.raises(SettingsError, match="DUNNOCK_PUBLIC_URL"):
            make(**good | {"public_url": url})
    assert make(api_auth="open").api_auth == "open"


@pytest.mark.parametrize(
    "url",
    ["birds.example", "ftp://birds.example", "https://", "https://birds.example/x", "https://birds.example?x", "http://[x",
     "https://a@birds.example", "https://birds.example:x"],
)  # fmt: skip
def test_a_public_url_is_scheme_and_host(url: str) -> None:
    with pytest.raises(SettingsError, match="DUNNOCK_PUBLIC_URL"):
        make(public_url=url)


def test_hosts_that_are_trusted() -> None:
    assert make().trusted_hosts is None
    assert make(public_url="http://birds.example:8080/").trusted_hosts == ["birds.example", "127.0.0.1", "localhost"]


def test_the_environment_sets_plain_and_nested_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNNOCK_UPDATE__BETA", "0.25")
    monkeypatch.setenv("DUNNOCK_SNAPSHOT__INCLUDE_SIMULATED", "true")
    monkeypatch.setenv("DUNNOCK_WEB_PORT", "9999")
    settings = make()
    assert (settings.update.beta, settings.snapshot.include_simulated, settings.web_port) == (0.25, True, 9999)
    assert settings.update.epochs == make(update={}).update.epochs  # the neighbours keep their defaults


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DUNNOCK_UPDATE__BETTA", "0.2"),  # a slip in a stage's setting is no silent default
        ("DUNNOCK_UPDATE__BETA", "0"),
        ("DUNNOCK_SNAPSHOT__HELDOUT_FRAC", "1"),
        ("DUNNOCK_ENV", "staging"),
        ("DUNNOCK_UPDATE__LABEL_SMOOTHING", "0.5"),
    ],
)
def test_a_value_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        make()


def test_settings_do_not_change() -> None:
    settings = make()
    with pytest.raises(ValidationError, match="frozen"):
        settings.web_port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.update.beta = 1.0  # type: ignore[misc]


def test_a_dotenv_file_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DUNNOCK_REQUIRED_N=3\nDUNNOCK_GATE__MAX_TOKENS=16\n")
    settings = Settings(_env_file=tmp_path / ".env")
    assert (settings.required_n, settings.gate.max_tokens) == (3, 16)


def test_an_empty_suites_folder_means_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DUNNOCK_SUITES_DIR", "")
    assert make().suites_dir is None
    monkeypatch.setenv("DUNNOCK_SUITES_DIR", str(tmp_path))
    assert make().suites_dir == tmp_path


def test_defaults_that_hang_on_others(tmp_path: Path) -> None:
    settings = make(var_dir=tmp_path / "x" / ".." / "var", engine_port=1234)
    assert settings.var_dir == tmp_path / "var"
    assert settings.db_url == f"sqlite:///{tmp_path}/var/dunnock.db"
    assert settings.artifact_dir == tmp_path / "var" / "artifacts"
    assert settings.engine_base_url == "http://127.0.0.1:1234/v1"
    assert make(engine_url="http://gpu:8000/v1/").engine_base_url == "http://gpu:8000/v1"
    assert make(database_url="postgresql://db/dunnock").db_url == "postgresql://db/dunnock"


def test_the_development_secret_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    secret = make(var_dir=tmp_path).session_secret()
    assert len(secret) >= 48
    assert make(var_dir=tmp_path).session_secret() == secret
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600
    assert make(var_dir=tmp_path / "other").session_secret() != secret
