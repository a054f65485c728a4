"""What replies take: seconds of the engine, joules, CO2; who is told, and where it is kept."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from core.db import Database
from core.errors import SettingsError
from core.messages import user
from core.settings import EnergySettings, Settings
from feedback.models import Completion
from policy.protocol import read_event, read_reply
from serving.deferred import wait
from serving.energy import Energy, Metered, carbon_intensity, energy_of
from serving.engines import Replica
from tests.serving.conftest import Served
from tests.serving.test_guarding import INJECTION, Installed
from tests.serving.test_metrics import figures, grown

WATTS = {"energy": EnergySettings(engine_watts=50.0, country="DEU")}
ASK = {"X-Dunnock-Energy": "true"}


@pytest.fixture
def installed(settings: Settings, database: Database) -> Iterator[Installed]:
    found = Installed(settings.model_copy(update=WATTS), database)
    yield found
    found.stop()


def call(installed: Installed, headers: Any = ASK, **more: Any) -> Any:
    body = {"model": "dunnock", "messages": user("Hi"), **more}
    answer = installed.client.post("/v1/chat/completions", json=body, headers={**installed.key, **headers})
    assert answer.status_code == 200, answer.text
    return answer


def told(answer: Any, stream: bool) -> Any:
    """The `dunnock` object of the end."""
    if not stream:
        return answer.json["dunnock"]
    return json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))["dunnock"]


def kept(installed: Installed) -> list[float | None]:
    with installed.database.read() as session:
        return list(session.scalars(select(Completion.energy_j).where(Completion.source == "served")))


# --- the estimate


def test_joules_and_grams() -> None:
    energy = Energy(watts=100.0, g_co2_per_kwh=360.0)
    assert energy.joules(36.0) == 3600.0  # a thousandth of a kWh
    assert energy.told(3600.0) == {"joules": 3600.0, "co2_g": 0.36, "estimated": True}
    assert energy.joules(None) is None
    assert Energy().joules(36.0) is None
    assert Energy().told(None) is None


def test_which_watts_and_which_electricity() -> None:
    assert energy_of(EnergySettings()) == Energy()
    assert energy_of(EnergySettings(engine_watts=40, measure=False)) == Energy()
    assert energy_of(EnergySettings(cpu_watts=30)) == Energy(30, carbon_intensity(""))
    assert energy_of(EnergySettings(engine_watts=40, cpu_watts=30, g_co2_per_kwh=7)) == Energy(40, 7)
    assert carbon_intensity("") == 475
    assert 0 < carbon_intensity("FRA") < carbon_intensity("DEU") < carbon_intensity("POL") < 1000
    with pytest.raises(SettingsError, match="XXX"):
        energy_of(EnergySettings(engine_watts=40, country="XXX"))


def test_seconds_that_an_engine_tells_are_used_and_others_are_not() -> None:
    metered = Metered(Energy(2.0), share_s=lambda: 9.0)
    assert metered.joules(3.0) == 6.0
    assert metered.joules(None) == 18.0
    for odd in (-1, True, "3", None, [], float("nan"), float("inf")):
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "compute_seconds": odd}
        whole = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
        assert read_reply(whole, 1.0).compute_s is None
        assert read_event({"usage": usage, "choices": []}).compute_s is None
    assert read_event({"usage": {"compute_seconds": 0.5}, "choices": []}).compute_s == 0.5


def test_an_engine_s_time_is_split_among_the_calls_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("serving.engines.time.monotonic", lambda: now)
    replica = Replica("test", None, None)  # type: ignore[arg-type]
    began, parts = {}, {}
    for at, name in ((10.0, "a"), (12.0, "b"), (16.0, "a"), (17.0, "b"), (30.0, "c"), (31.0, "c")):
        now = at
        if name in began:
            parts[name] = replica.shared_s() - began[name]
            replica.ended()
        else:
            replica.begun()
            began[name] = replica.share_s
    assert parts == {"a": 2 + 4 / 2, "b": 4 / 2 + 1, "c": 1}
    assert sum(parts.values()) == 7 + 1  # no second is told twice


# --- in the chat API


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_is_told_and_it_is_kept_and_counted(installed: Installed, stream: bool) -> None:
    before = figures(installed)
    said = told(call(installed, stream=stream), stream)
    assert said["policy_version"] == "v1"
    assert said["energy"]["joules"] > 0
    assert said["energy"]["co2_g"] == pytest.approx(
        said["energy"]["joules"] / 3.6e6 * carbon_intensity("DEU"), abs=1e-8
    )
    assert kept(installed) == [said["energy"]["joules"]]
    assert grown(before, figures(installed), "dunnock_energy_joules_total", version="v1") == pytest.approx(
        kept(installed)[0]
    )
    assert told(call(installed, {}, stream=stream), stream) == {"policy_version": "v1"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_prompt_took_nothing(installed: Installed, stream: bool) -> None:
    said = told(call(installed, messages=user(INJECTION), stream=stream), stream)
    assert said["energy"] == {"joules": 0.0, "co2_g": 0.0, "estimated": True}


def test_several_choices_are_added_up(installed: Installed) -> None:
    said = told(call(installed, n=3), False)
    assert said["energy"]["joules"] == pytest.approx(sum(kept(installed)))  # type: ignore[arg-type]
    assert len(kept(installed)) == 3


def test_a_stream_that_is_left_took_something(installed: Installed) -> None:
    installed.engine.pieces = ["word " * 40] * 3
    answer = call(installed, stream=True)
    pieces = iter(answer.response)
    for _ in range(2):
        next(pieces)
    answer.close()
    assert kept(installed)[0] > 0  # type: ignore[operator]


def test_without_watts_there_is_no_estimate(settings: Settings, database: Database) -> None:
    installed = Installed(settings.model_copy(update={"energy": EnergySettings(tell_callers=True)}), database)
    for stream in (False, True):
        assert told(call(installed, stream=stream), stream) == {"policy_version": "v1"}
    assert kept(installed) == [None, None]
    installed.stop()


def test_the_settings_can_tell_everybody(settings: Settings, database: Database) -> None:
    energy = EnergySettings(tell_callers=True, engine_watts=5)
    installed = Installed(settings.model_copy(update={"energy": energy}), database)
    assert "energy" in told(call(installed, {}), False)
    installed.stop()


# --- our engine


def test_our_engine_tells_what_it_computed(served: Served) -> None:
    from policy.async_client import AsyncEngineClient
    from policy.protocol import ChatRequest

    def request(n: int) -> ChatRequest:
        return ChatRequest(model="base", messages=user("Hi"), max_tokens=n, temperature=0)  # type: ignore[arg-type]

    async def ask() -> tuple[Any, Any, float]:
        client = AsyncEngineClient(f"http://127.0.0.1:{served.engine.port}/v1")
        try:
            return await asked_of(client)
        finally:
            await client.close()

    async def asked_of(client: AsyncEngineClient) -> tuple[Any, Any, float]:
        one = await client.complete(request(1))
        began = asyncio.get_running_loop().time()
        several = await asyncio.gather(*(client.complete(request(40)) for _ in range(4)))
        spent_s = asyncio.get_running_loop().time() - began
        async with await client.stream(request(5)) as events:
            *_, last = [event async for event in events]
        assert last.compute_s > 0
        return one, several, spent_s

    one, several, spent_s = wait(ask())
    assert all(reply.compute_s > 0 for reply in (one, *several))
    # Together no more than the time in which they were computed, though each was open nearly all of it.
    assert sum(reply.compute_s for reply in several) <= spent_s
