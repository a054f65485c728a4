"""Thresholds and actions by rule: leads set them while it serves, and the next reply is held to them."""

from collections.abc import Iterator
from typing import Any

import pytest

from core.db import Database
from core.errors import Conflict, InvalidInput
from core.settings import SamplingSettings, Settings
from feedback.rules.thresholds import history, set_threshold, thresholds
from feedback.rules.words import Change
from tests.serving.test_guarding import Installed


@pytest.fixture
def guarded(settings: Settings, database: Database) -> Iterator[Installed]:
    alone = settings.model_copy(update={"sampling": SamplingSettings(recorded_rate=0)})
    found = Installed(alone, database).with_model()
    yield found
    found.stop()


def hold(guarded: Installed, threshold: float | None, action: str = "block", **more: Any) -> None:
    with guarded.database.session() as session:
        rule = guarded.rules[0].rule
        base = next((row.number for row in history(session, rule.id)), 0)
        set_threshold(session, rule.slug, threshold, action, **{"base": base, "change": guarded.change, **more})


@pytest.mark.parametrize("stream", [False, True])
def test_a_rule_holds_as_leads_set_it_from_the_next_call_on(guarded: Installed, stream: bool) -> None:
    """The model says 0.9 of what breaks a rule and 0.1 of what does not; its own threshold is 0.5."""
    rule = ("output", "rules", "no_cuckoo")

    def said(*pieces: str) -> tuple[str, str, Any]:
        _, reason = guarded.ask(*pieces, stream=stream)
        verdict = guarded.stored()[1].get(rule, {})
        return reason, verdict.get("outcome", "not asked"), verdict.get("threshold")

    assert said("A cuckoo.") == ("content_filter", "hit", 0.5)
    hold(guarded, 0.95)
    assert said("A cuckoo.") == ("stop", "clear", 0.95)
    hold(guarded, 0.05)
    assert said("A wren.") == ("content_filter", "hit", 0.05)
    hold(guarded, None, "record")
    assert said("A cuckoo.") == ("stop", "hit", 0.5)
    hold(guarded, None, "off")
    assert said("A cuckoo.") == ("stop", "not asked", None)
    assert guarded.ask("A heron.", stream=stream)[1] == "content_filter"  # another rule holds as it did


def test_what_moderation_says_follows(guarded: Installed) -> None:
    def flagged() -> dict[str, bool]:
        answer = guarded.client.post("/v1/moderations", json={"input": "A cuckoo."}, headers=guarded.key)
        return {name: hit for name, hit in answer.json["results"][0]["categories"].items() if name.startswith("no_")}

    assert flagged() == {"no_cuckoo": True, "no_heron": False}
    hold(guarded, 0.95)
    assert flagged() == {"no_cuckoo": False, "no_heron": False}
    hold(guarded, None, "off")
    assert flagged() == {"no_heron": False}


def test_what_is_no_threshold_is_refused_and_of_two_edits_one_is_kept(guarded: Installed) -> None:
    for wrong in (0.0, -0.1, 1.01, float("nan"), float("inf")):
        with pytest.raises(InvalidInput):
            hold(guarded, wrong)
    for more in ({"action": "explode"}, {"change": Change(author_id=1, login="x", note=" ")}):
        with pytest.raises(InvalidInput):
            hold(guarded, 0.5, **more)
    hold(guarded, 0.5, base=0)
    with pytest.raises(Conflict):
        hold(guarded, 0.6, base=0)
    with pytest.raises(InvalidInput, match="nothing"):
        hold(guarded, 0.5)
    with guarded.database.read() as session:
        assert thresholds(session) == {guarded.rules[0].rule_id: (0.5, "block")}
        assert [row.note for row in history(session, guarded.rules[0].rule_id)] == ["birds"]
