"""The student with a tiny encoder: it learns a toy rule from a teacher, whole and in parts, and is stored so that damage is seen."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.artifacts import hash_folder
from core.errors import ArtifactError, StageError
from feedback.dataset import RuleExample
from reward.guard.answers import Answer, Asked, gather, texts_of
from reward.guard.distil import FRACTIONS, parts, train_guard, why_not
from reward.guard.encoder import SHARED_TOKENS, TEXT_TOKENS, Encoder, end_of
from reward.guard.figures import agreement, kappa, threshold
from reward.guard.student import HEAD, Rule, Student
from tests.reward.conftest import (
    RULES,
    SETTINGS,
    Trained,
    WordTeacher,
    answers,
    make_tiny_encoder,
    texts,
    word_of,
)

CONTEXT = "user: How do I keep the wren safe?"


def test_it_agrees_with_the_teacher_on_prompts_that_it_did_not_see(trained: Trained) -> None:
    whole = trained.facts["whole"]
    assert whole["n"] == trained.facts["n_heldout"] > 100
    assert whole["auc"]["low"] > 0.75
    assert whole["kappa"] > 0.3
    assert whole["brier"] < whole["brier_of_mean"]
    assert trained.facts["clears_bar"]
    assert {row["rule"] for row in trained.facts["per_rule"]} == {rule.name for rule in RULES}


def test_parts_of_a_text_are_judged_and_more_of_it_is_better(trained: Trained) -> None:
    rows = trained.facts["by_fraction"]
    assert [row["frac"] for row in rows] == list(FRACTIONS)
    assert rows[0]["auc"]["value"] < rows[-1]["auc"]["value"]
    assert rows[-1]["as_whole"]["rate"] == 1.0
    assert trained.facts["on_the_way"]["recall"]["rate"] >= rows[-1]["recall"]["rate"]


def test_a_word_counts_from_where_it_stands(trained: Trained, encoder: Encoder) -> None:
    student = Student.load(trained.folder, encoder)
    whole = "the wren in the garden and bread."
    before, after = student.p_broken([(CONTEXT, whole[:20]), (CONTEXT, whole)], ["Do not talk about bread."])
    assert after[0] > 2 * before[0]


def test_rules_held_out_whole_are_reported(trained: Trained) -> None:
    unseen = trained.facts["unseen"]
    assert (unseen["rules"], unseen["n"]) == (4, trained.facts["n_heldout"])
    assert unseen["auc"]["value"] < trained.facts["whole"]["auc"]["value"]


def test_the_thresholds_hold_what_they_are_chosen_for(trained: Trained, encoder: Encoder) -> None:
    """On clean texts of other prompts, asked at each part."""
    student = Student.load(trained.folder, encoder)
    clean = [t for t in texts(5000, 200, heldout=False) if not any(word_of(r.text) in t.completion for r in RULES)]
    hits = 0
    for rule in RULES:
        asked = [(end_of(t.prompt), part) for t in clean for part in parts(t.completion)]
        p = torch.tensor(student.p_broken(asked, [rule.text])).reshape(len(clean), len(FRACTIONS))
        hits += int((p.amax(1) >= student.thresholds.of(rule)).sum())
    assert hits / (len(clean) * len(RULES)) < 2 * SETTINGS.guard_false_hits_frac


def test_a_rule_whose_words_were_changed_has_the_common_threshold(trained: Trained, encoder: Encoder) -> None:
    limits = Student.load(trained.folder, encoder).thresholds
    own = {row["rule"]: row["threshold"] for row in trained.facts["thresholds"]["by_rule"]}
    assert limits.of(RULES[0]) == own["bread"]
    assert limits.of(Rule("bread", "Say nothing of bread.")) == limits.common == trained.facts["thresholds"]["common"]
    assert limits.of(Rule("unheard", RULES[0].text)) == limits.common


def test_a_rule_that_nobody_judged_is_asked_about(trained: Trained, encoder: Encoder) -> None:
    student = Student.load(trained.folder, encoder)
    found = student.p_broken([("", "a robin"), ("", "a wren")], ["Do not talk about garden.", RULES[0].text])
    assert all(0 < p < 1 for row in found for p in row)
    assert student.p_broken([("", "a robin")], []) == [[]]
    assert student.p_broken([], [RULES[0].text]) == []


def test_asked_together_is_as_asked_alone(trained: Trained, encoder: Encoder) -> None:
    student = Student.load(trained.folder, encoder)
    items = [(end_of(t.prompt), t.completion * (1 + i % 5)) for i, t in enumerate(texts(0, 20, heldout=False))]
    together = student.p_broken(items, [r.text for r in RULES])
    for item, row in zip(items, together, strict=True):
        assert student.p_broken([item], [r.text for r in RULES])[0] == pytest.approx(row, abs=1e-5)


def test_only_the_end_of_a_long_text_is_read(encoder: Encoder) -> None:
    long = "bread " * 5000 + "winter"
    found = encoder.tokens("butter " * 5000, long)
    assert len(found.ids) - found.start == TEXT_TOKENS + 1
    assert found.ids == encoder.tokens("butter " * 300, "bread " * 400 + "winter").ids


@pytest.mark.parametrize(
    "text", ["bread winter Paris " * 150, "bread" + " " * 9000 + "winter", "é" * 3000, "x" * 7000, " " * 6000, ""]
)
@pytest.mark.parametrize("start", [0, 700, 2500])
def test_windows_leave_nothing_unread_from_the_start_on(encoder: Encoder, text: str, start: int) -> None:
    windows = encoder.windows("butter", text, start)
    assert windows[0].ids == encoder.tokens("butter", text).ids
    read = [window.ids[window.start : -1] for window in windows]
    assert all(len(ids) <= TEXT_TOKENS for ids in read)
    wanted = encoder._words.encode(text[start:], add_special_tokens=False).ids
    if text.startswith("bread winter"):  # cut between words, so the tokens are those of the whole
        found = list(read[-1])
        for ids in reversed(read[:-1]):
            found += ids[SHARED_TOKENS:]
        assert found[-len(wanted) + 2 :] == wanted[2:]
    assert len(windows) <= 2 + len(text) // 300


# --- the folder


def test_the_record_and_the_folder(trained: Trained, encoder: Encoder) -> None:
    assert {p.name for p in trained.folder.iterdir()} == {HEAD, "run.json"}
    record = json.loads((trained.folder / "run.json").read_text())
    assert (record["stage"], record["snapshot_sha256"], record["teacher_sha256"]) == ("guard", "5" * 64, "7" * 64)
    assert record["encoder_sha256"] == encoder.sha256
    assert record["thresholds"]["false_hits_frac"] == SETTINGS.guard_false_hits_frac
    assert record["whole"] == trained.facts["whole"]


def test_it_is_made_the_same_again(trained: Trained, encoder: Encoder, tmp_path: Path) -> None:
    train_guard(answers(), encoder, tmp_path, SETTINGS, teacher={"sha256": "7" * 64, "clears_bar": True})
    assert (tmp_path / HEAD).read_bytes() == (trained.folder / HEAD).read_bytes()


def test_a_teacher_below_its_bar_makes_no_guard_above_it(encoder: Encoder, tmp_path: Path) -> None:
    facts = train_guard(answers(), encoder, tmp_path, SETTINGS, teacher={"sha256": "", "clears_bar": False})
    assert not facts["clears_bar"]


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    shutil.copytree(trained.folder, tmp_path / "copy")
    assert hash_folder(tmp_path / "copy") == hash_folder(trained.folder)
    return tmp_path / "copy"


def test_another_encoder_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="was made with the encoder"):
        Student.load(copy, Encoder(make_tiny_encoder(tmp_path / "other", seed=1), "cpu"))


def test_a_cut_head_is_refused(copy: Path, encoder: Encoder) -> None:
    (copy / HEAD).write_bytes((copy / HEAD).read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        Student.load(copy, encoder)


def test_a_head_that_answers_otherwise_is_refused(copy: Path, encoder: Encoder) -> None:
    from safetensors.torch import load_file, save_file

    save_file({n: torch.zeros_like(v) for n, v in load_file(copy / HEAD).items()}, copy / HEAD)
    with pytest.raises(ArtifactError, match="answers known texts"):
        Student.load(copy, encoder)


@pytest.mark.parametrize("content", ["", "{}", '{"stage": "rules"}'])
def test_what_is_no_guards_model_is_refused(copy: Path, encoder: Encoder, content: str) -> None:
    (copy / "run.json").write_text(content)
    with pytest.raises(ArtifactError, match="holds no guard's model|made by the stage"):
        Student.load(copy, encoder)


def test_a_language_model_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no encoder that transformers can load"):
        Encoder(tmp_path, "cpu")


# --- answers


def verdict(text: int, rule: Rule, broken: float, *, heldout: bool = False) -> RuleExample:
    (own,) = texts(text, 1, heldout=heldout)
    return RuleExample(own.prompt, own.completion, rule.name, rule.text, broken, cluster=own.cluster)


def test_what_people_judged_the_teacher_is_not_asked_but_for_comparing() -> None:
    train, held = [verdict(0, RULES[0], 0.9)], [verdict(1000, RULES[1], 0.1, heldout=True)]
    teacher = WordTeacher()
    found = gather(
        texts_of([], train, heldout=False), texts_of([], held, heldout=True), [*train, *held], RULES, teacher,  # type: ignore[arg-type]
        100, lambda *_: None,
    )  # fmt: skip
    assert [(a.rule, a.broken) for a in found.of(heldout=False, by="people")] == [(0, 0.9)]
    assert {a.rule for a in found.of(heldout=False, by="teacher")} == {1, 2, 3}
    assert [a.rule for a in found.of(heldout=True, by="people")] == [1]
    assert {a.rule for a in found.of(heldout=True, by="teacher")} == {0, 1, 2, 3}
    assert teacher.asked == 7


def test_the_teacher_is_asked_no_more_than_it_may_be() -> None:
    teacher = WordTeacher()
    found = gather(
        texts(0, 200, heldout=False), texts(1000, 200, heldout=True), [], RULES, teacher, 60, lambda *_: None  # type: ignore[arg-type]
    )  # fmt: skip
    assert 50 <= teacher.asked == len(found.answers) <= 60
    assert len(found.of(heldout=True, by="teacher")) == 16


def test_verdicts_on_the_words_of_before_are_learnt_with_those_words() -> None:
    old = Rule("bread", "Do not say bread.")
    train = [verdict(0, old, 0.9)]
    found = gather(
        texts_of([], train, heldout=False), [], train, RULES, WordTeacher(), 100, lambda *_: None  # type: ignore[arg-type]
    )  # fmt: skip
    (own,) = found.of(heldout=False, by="people")
    assert found.rules[own.rule] == old
    assert len(found.rules) == 5


def test_peoples_verdicts_are_compared_with_where_there_are_enough(encoder: Encoder, tmp_path: Path) -> None:
    train = [verdict(i, RULES[i % 4], 0.1) for i in range(40)]
    held = [verdict(1000 + i, RULES[i % 4], 0.9 if i % 2 else 0.1, heldout=True) for i in range(80)]
    sides = texts_of([], train, heldout=False), texts_of([], held, heldout=True)
    asked = gather(*sides, [*train, *held], RULES, WordTeacher(), 800, lambda *_: None)  # type: ignore[arg-type]
    facts = train_guard(asked, encoder, tmp_path, SETTINGS, teacher={"sha256": "", "clears_bar": True})
    assert facts["people"]["n"] == len(asked.of(heldout=True, by="people")) >= 20
    assert "kappa" in facts["people"]
    assert facts["n_people"] == len(sides[0]) > 30  # toy texts may be the same


def test_why_not(encoder: Encoder, tmp_path: Path) -> None:
    good = answers()
    assert why_not(good) is None
    few = replace(good, answers=good.answers[:30])
    assert why_not(few) == "only 30 answers are to be learnt from; at least 40 are needed"
    kept = replace(good, answers=[replace(a, broken=0.1) for a in good.answers])
    assert (why_not(kept) or "").startswith("only 0 of the answers to learn from call a rule broken, or kept")
    with pytest.raises(StageError, match="no guard's model: only 30 answers"):
        train_guard(few, encoder, tmp_path, SETTINGS, teacher={"sha256": "", "clears_bar": True})


def test_only_heldout_answers_are_none_to_learn_from() -> None:
    own = texts(1000, 50, heldout=True)
    asked = Asked(own, RULES, [Answer(i, 0, float(i % 2), 1.0, "teacher") for i in range(50)])
    assert why_not(asked) == "only 0 answers are to be learnt from; at least 40 are needed"


# --- figures, by hand


def test_kappa_by_hand() -> None:
    assert kappa([True, True, False, False], [True, False, False, False]) == pytest.approx(0.5)
    assert kappa([True, False], [True, False]) == 1.0
    assert kappa([False, False], [False, False]) is None
    assert kappa([], []) is None


def test_threshold_by_hand() -> None:
    clean = [i / 100 for i in range(99)]
    limit = threshold(clean, 0.1)  # the 90th smallest of 99: a hundredth text is above it one time in ten
    assert limit is not None
    assert sum(p >= limit for p in clean) == 9
    assert threshold(clean[:8], 0.1) is None
    assert threshold(clean[:9], 0.1) == pytest.approx(0.08)


def test_agreement_by_hand() -> None:
    found = agreement([0.9, 0.6, 0.2, 0.4], [1.0, 0.0, 0.0, 1.0], [True, True, False, False])
    assert (found["n"], found["broken"], found["kappa"]) == (4, 0.5, 0.0)
    assert found["auc"]["value"] == 0.75
    assert (found["recall"]["rate"], found["false_hits"]["rate"]) == (0.5, 0.5)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.04 + 0.36) / 4)
    assert found["brier_of_mean"] == 0.25
    assert agreement([], [], [])["n"] == 0
