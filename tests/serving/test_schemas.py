"""What a chat call becomes for the engine."""

import pytest

from core.settings import Settings
from serving.schemas import ChatBody


@pytest.mark.parametrize(
    ("asked", "sent"), [({}, 0.2), ({"temperature": None}, 0.2), ({"temperature": 0}, 0.0), ({"temperature": 1}, 1.0)]
)
def test_a_call_that_names_no_temperature_gets_the_deployments(asked: dict[str, float | None], sent: float) -> None:
    body = ChatBody.model_validate({"model": "dunnock", "messages": [{"role": "user", "content": "hi"}], **asked})
    settings = Settings(_env_file=None, default_temperature=0.2)
    assert body.engine_requests("v1", settings, {})[0].temperature == sent
