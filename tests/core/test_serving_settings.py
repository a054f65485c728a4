"""Where requests are counted: what is no storage is refused when the settings are read."""

import pytest
from pydantic import ValidationError

from core.settings import LimitsSettings


def test_a_storage_that_nobody_knows_is_refused() -> None:
    for url in ("redus://127.0.0.1", "127.0.0.1:6379", "async+redis://127.0.0.1", "memory://"):
        with pytest.raises(ValidationError, match="is not one that all processes share"):
            LimitsSettings(storage_url=url)
    assert LimitsSettings(storage_url="redis://127.0.0.1:6379/0").storage_url
    assert LimitsSettings().storage_url == ""
