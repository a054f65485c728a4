"""What is not agreed to is not learnt from: not asked about, in no snapshot, in no export of preferences."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from core.errors import InvalidInput
from feedback.consent import CONSENTS, consent_of, user_key
from feedback.dataset import freeze, load_rule_examples
from feedback.judgments import record_feedback
from feedback.models import Completion, Judgment, RuleJudgment
from feedback.preferences import gather
from feedback.tasks import create_task
from tests.factories import make_completion, make_prompt
from tests.factories import question as ask
from tests.feedback.quality.rows import make_rule
from tests.feedback.test_dataset import HALF, all_pairs, rate

WORDS = st.one_of(st.none(), st.sampled_from(CONSENTS))


@given(st.lists(WORDS, max_size=4), st.sampled_from(CONSENTS))
def test_the_strictest_word_holds(said: list[str | None], default: str) -> None:
    found = consent_of(*said, default=default)
    words = [word for word in said if word is not None]
    assert found in (words or [default])
    assert all(CONSENTS.index(found) <= CONSENTS.index(word) for word in words)  # type: ignore[arg-type]


def test_a_word_is_known_in_any_case_and_others_are_refused() -> None:
    assert consent_of(" Service ", default="training") == "service"
    for wrong in ("", "yes", "trainings"):
        with pytest.raises(InvalidInput):
            consent_of(wrong, default="training")


def test_a_user_is_known_by_name_tenant_and_secret() -> None:
    keys = {user_key(secret, tenant, user) for secret in ("s", "t") for tenant in (None, 1, 2) for user in ("a", "b")}
    assert len(keys) == 12
    assert user_key("s", 1, "a") == user_key("s", 1, "a")
    assert user_key("s", 1, "") is user_key("s", 1, None) is None


@pytest.mark.parametrize("consent", ["none", "service"])
def test_a_snapshot_never_takes_what_was_not_agreed_to(session: Session, tmp_path: Path, consent: str) -> None:
    """Pairs, ratings, corrections and rule verdicts, judged before the word was changed or smuggled in by hand."""
    kept = [rate(session, ask(n), a=f"yes {n}", b=f"no {n}") for n in range(12)]
    rule = make_rule(session)
    secret = [rate(session, ask(n), a=f"secret yes {n}", b=f"secret no {n}") for n in range(12, 24)]
    prompt = make_prompt(session, ask(30))
    good, bad = (make_completion(session, prompt, f"secret {word}", "served") for word in ("good", "bad"))
    for completion, thumbs in ((good, 1), (bad, -1)):
        record_feedback(session, completion_id=completion.id, annotator_id=None, thumbs=thumbs)
    record_feedback(session, completion_id=bad.id, annotator_id=None, correction="secret better")
    verdict = Judgment(kind="rule_check", completion_id=None)
    session.add(verdict)
    session.flush()
    session.add(RuleJudgment(judgment_id=verdict.id, rule_version_id=rule.id, completion_id=good.id, verdict="broken"))
    session.flush()
    with_all = gather(session, include_simulated=False, max_imported_pairs=0)
    assert sum("secret" in pair.chosen for pair in with_all.preferences) == 14
    assert len(with_all.rules) == 1
    for completion in session.query(Completion).filter(Completion.text.like("secret%")):
        completion.consent = consent
    session.flush()
    snapshot = freeze(session, tmp_path, HALF)
    pairs = all_pairs(tmp_path, snapshot)
    assert len(pairs) == len(kept)
    folder = tmp_path / snapshot.path
    assert not any("secret" in path.read_text() for path in folder.iterdir())
    assert not load_rule_examples(folder, "train") + load_rule_examples(folder, "heldout")
    assert set(snapshot.manifest["judgment_ids"]) == {judgment.id for judgment in kept}
    assert snapshot.manifest["counts"]["left_out_no_consent"] == len(secret) + 4


@pytest.mark.parametrize("consent", ["none", "service"])
def test_nobody_can_ask_about_it(session: Session, consent: str) -> None:
    completion = make_completion(session, source="served", details={"consent": consent})
    with pytest.raises(InvalidInput):
        create_task(session, "rating", completion.prompt_id, [completion.id], source="by hand")
