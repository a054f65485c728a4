from flask.testing import FlaskClient

from core.db import Database
from policy.models import PolicyVersion
from tests.serving.conftest import Served


def test_ready_when_the_engine_has_the_active_version(client: FlaskClient, served: Served) -> None:
    assert client.get("/healthz").status_code == 200
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json) == (200, {"ready": True, "policy_version": "v1", "reasons": []})
    assert "v1" in served.engine.decoder.adapters()


def test_not_ready_without_an_active_version(client: FlaskClient) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["reasons"] == ["policy: no policy version is active yet"]


def test_not_ready_without_the_engine(client: FlaskClient, served: Served) -> None:
    served.engine.stop()
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["reasons"] == ["engine: it does not answer"]
    assert client.get("/healthz").status_code == 200


def test_not_ready_with_a_damaged_adapter_even_if_the_engine_still_has_it(client: FlaskClient, served: Served) -> None:
    assert client.get("/readyz").status_code == 200
    (served.adapter / "adapter_config.json").write_text("{}")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["reasons"] == ["policy: version v1 cannot be loaded (artifact_error)"]
    assert str(served.adapter) not in answer.text


def test_not_ready_without_the_tables(client: FlaskClient, served: Served, database: Database) -> None:
    with database.session() as session:
        session.connection().exec_driver_sql(f"ALTER TABLE {PolicyVersion.__tablename__} RENAME TO gone")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["reasons"][0].startswith("database:")
