"""Snapshots: what goes in, which side it goes to, and that a frozen one stays what it was."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.db import Database
from core.errors import ArtifactError, InvalidInput, NotFound
from core.settings import SnapshotSettings
from evals.suites import frozen_texts
from feedback.dataset import Vote, find_snapshot, freeze, load_pairs, load_rule_examples
from feedback.exchange.importing import Pair, _add
from feedback.models import Completion, Judgment, Snapshot, SnapshotJudgment
from feedback.preferences import Preference
from tests.factories import NOUNS, make_pairwise_task, make_person, make_prompt
from tests.factories import question as ask
from tests.feedback.quality.rows import checks, make_rule
from tests.feedback.quality.rows import choose as choose_side

HALF = SnapshotSettings(heldout_frac=0.5)


def long_ask(number: int) -> str:
    """A prompt so long that one word more or less makes a near-duplicate of it."""
    return " ".join(f"{noun}{number}" for noun in NOUNS)


def rate(session: Session, prompt: str, a: str = "yes", b: str = "no") -> Judgment:
    """A pair `a` ≻ `b` of a prompt."""
    task = make_pairwise_task(session, make_prompt(session, prompt), a=a, b=b)
    judgment = Judgment(kind="pairwise", task_id=task.id, choice="a", strength=2)
    session.add(judgment)
    session.flush()
    return judgment


def sides(folder: Path, snapshot: Snapshot) -> dict[str, str]:
    """prompt → the split that it went to."""
    return {
        pair.prompt[0]["content"]: split
        for split in ("train", "heldout")
        for pair in load_pairs(folder / snapshot.path, split, expected_sha256=snapshot.content_sha256)
    }


def all_pairs(folder: Path, snapshot: Snapshot) -> list[Preference]:
    return [pair for split in ("train", "heldout") for pair in load_pairs(folder / snapshot.path, split)]


@pytest.mark.parametrize("kind", ["database", "postgres_database"])
def test_equal_input_gives_an_equal_hash_and_the_same_row(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    db: Database = request.getfixturevalue(kind)
    with db.session() as session:
        made = {rate(session, ask(n)).id for n in range(20)}
        first = freeze(session, tmp_path, HALF)
        assert freeze(session, tmp_path, HALF).id == first.id
    with db.session() as session:
        again = freeze(session, tmp_path / "elsewhere", HALF)
        assert (again.id, again.content_sha256) == (first.id, first.content_sha256)
        assert set(session.scalars(select(SnapshotJudgment.judgment_id))) == made
        rate(session, ask(20))
        other = freeze(session, tmp_path, HALF)
        assert other.content_sha256 != first.content_sha256
        assert session.scalar(select(func.count(Snapshot.id))) == 2
    assert len(sides(tmp_path, first)) == 20
    assert len(sides(tmp_path, other)) == 21


def test_the_order_of_judging_changes_nothing_but_names(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        rate(session, ask(n))
    before = sides(tmp_path, freeze(session, tmp_path, HALF))
    for judgment in session.scalars(select(Judgment)).all():
        judgment.surplus = True
    for n in reversed(range(12)):
        rate(session, ask(n))
    assert sides(tmp_path, freeze(session, tmp_path, HALF)) == before


def test_the_manifest_says_what_is_in_it(session: Session, tmp_path: Path) -> None:
    judgments = [rate(session, ask(n)) for n in range(16)]
    judgments[3].simulated = True
    tie = rate(session, ask(90))
    tie.choice, tie.strength = "tie", 0
    settings = SnapshotSettings(heldout_frac=0.5, include_simulated=True)
    snapshot = freeze(session, tmp_path, settings)
    manifest = json.loads((tmp_path / snapshot.path / "manifest.json").read_text())
    assert manifest == snapshot.manifest
    assert manifest["settings"] == settings.model_dump()
    assert manifest["n_train"] + manifest["n_heldout"] == 16
    assert manifest["n_train"] == len(load_pairs(tmp_path / snapshot.path, "train"))
    assert (manifest["n_simulated"], manifest["n_clusters"]) == (1, 16)
    assert manifest["counts"] == {"from_choice": 16, "from_tie": 1, "redactions": 0}
    assert manifest["judgment_ids"] == [j.id for j in [*judgments, tie]]
    assert (manifest["n_ties"], manifest["n_rules_train"], manifest["n_rules_heldout"]) == (1, 0, 0)
    assert manifest["weights"]["pairs"]["undefined"].startswith("only 0 tasks")


def test_what_is_loaded_is_what_was_judged(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        rate(session, ask(n), a=f'Ja, «{n}» \u2028 und "so"', b="nein\nnein")
    pairs = all_pairs(tmp_path, freeze(session, tmp_path, HALF))
    assert sorted(p.chosen for p in pairs) == sorted(f'Ja, «{n}» \u2028 und "so"' for n in range(12))
    assert {(p.rejected, p.margin, p.source.split(":")[0]) for p in pairs} == {("nein\nnein", 2.0, "choice")}


# --- which side


def test_a_cluster_is_never_split(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        for ending in ("please", "Please ", "thanks", "now"):
            rate(session, f"{long_ask(n)} {ending}")
    snapshot = freeze(session, tmp_path, HALF)
    clusters: dict[str, set[str]] = {}
    for prompt, split in sides(tmp_path, snapshot).items():
        clusters.setdefault(prompt.split()[0], set()).add(split)
    assert [len(splits) for splits in clusters.values()] == [1] * 12
    assert snapshot.manifest["n_clusters"] == 12


def test_prompts_that_differ_are_clusters_of_their_own(session: Session, tmp_path: Path) -> None:
    for n in range(20):
        rate(session, ask(n))
    snapshot = freeze(session, tmp_path, HALF)
    assert snapshot.manifest["n_clusters"] == 20
    assert 3 <= snapshot.manifest["n_heldout"] <= 17  # half, give or take


def test_what_is_held_out_stays_held_out_when_data_grows(session: Session, tmp_path: Path) -> None:
    """Near-duplicates that come later, sorted before the first ones or after, take none to the training side."""
    for n in range(16):
        rate(session, long_ask(n))
    before = sides(tmp_path, freeze(session, tmp_path, HALF))
    for n in range(16):
        rate(session, f"a {long_ask(n)}")
        rate(session, f"{long_ask(n)} zzz")
        rate(session, ask(n))
    snapshot = freeze(session, tmp_path, HALF)
    after = sides(tmp_path, snapshot)
    held_out = {prompt for prompt, split in before.items() if split == "heldout"}
    assert len(held_out) > 3
    assert {prompt for prompt in held_out if after[prompt] != "heldout"} == set()
    assert {f"a {prompt}" for prompt in held_out if after[f"a {prompt}"] != "heldout"} == set()
    assert snapshot.manifest["n_clusters"] == 32


def test_a_larger_share_holds_out_what_a_smaller_one_did(session: Session, tmp_path: Path) -> None:
    for n in range(24):
        rate(session, ask(n))
    held_out: list[set[str]] = []
    for share in (0.2, 0.4, 0.8):
        found = sides(tmp_path, freeze(session, tmp_path, SnapshotSettings(heldout_frac=share)))
        held_out.append({prompt for prompt, split in found.items() if split == "heldout"})
    assert held_out[0] < held_out[1] < held_out[2]


# --- what is left out


@pytest.mark.parametrize(
    "asked",
    [
        "How do I keep a secret diary safe from my nosy brother and his friends at home?",
        "  how do I keep a secret   diary safe from my nosy brother and his friends at HOME?",
        "How do I keep a secret diary safe from my nosy brother and his friends at home today?",
    ],
    ids=["the very text", "other case and spaces", "a near-duplicate"],
)
def test_frozen_prompts_and_their_near_duplicates_are_left_out(session: Session, tmp_path: Path, asked: str) -> None:
    for n in range(12):
        rate(session, ask(n))
    rate(session, asked)
    frozen = "How do I keep a secret diary safe from my nosy brother and his friends at home?"
    assert asked in sides(tmp_path, freeze(session, tmp_path, HALF))
    snapshot = freeze(session, tmp_path, HALF, frozen_prompts=["Something else.", frozen])
    assert asked not in sides(tmp_path, snapshot)
    assert snapshot.manifest["counts"]["left_out_frozen_suite"] == 1
    assert snapshot.manifest["n_train"] + snapshot.manifest["n_heldout"] == 12


def test_a_frozen_prompt_at_the_end_of_a_longer_talk_is_left_out(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        rate(session, ask(n))
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello there."},
        {"role": "assistant", "content": "Hello. What can I do?"},
        {"role": "user", "content": frozen_texts()[0]},
    ]
    _add(session, Pair(talk, "No.", "Sure."), "test")
    snapshot = freeze(session, tmp_path, HALF, frozen_prompts=frozen_texts())
    assert snapshot.manifest["counts"]["left_out_frozen_suite"] == 1


def test_the_texts_of_the_frozen_suites_are_kept_out(session: Session, tmp_path: Path) -> None:
    frozen = frozen_texts()
    for text in [*frozen[::3], *(ask(n) for n in range(12))]:
        rate(session, text)
    snapshot = freeze(session, tmp_path, HALF, frozen_prompts=frozen)
    assert set(sides(tmp_path, snapshot)) == {ask(n) for n in range(12)}


def test_the_same_pair_in_several_tasks_is_one_with_all_votes(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        rate(session, ask(n))
    rate(session, ask(3))
    rate(session, ask(3).upper(), a="no", b="yes!")  # somebody who thinks otherwise, in other letters
    snapshot = freeze(session, tmp_path, HALF)
    counts = snapshot.manifest["counts"]
    assert (counts["merged_equal"], counts["merged_near"]) == (1, 1)
    assert snapshot.manifest["n_train"] + snapshot.manifest["n_heldout"] == 12
    (found,) = [p for p in all_pairs(tmp_path, snapshot) if len(p.votes) > 1]
    assert sorted(vote.strength for vote in found.votes) == [-2.0, 2.0, 2.0]
    assert found.target == pytest.approx(2 / 3)
    apart = freeze(session, tmp_path, SnapshotSettings(heldout_frac=0.5, merge_doubles=False))
    assert apart.manifest["n_train"] + apart.manifest["n_heldout"] == 14


def test_defences_change_nothing_where_there_is_nothing_to_defend(session: Session, tmp_path: Path) -> None:
    """People of about one share each, every prompt once: the files are equal to the byte with defences on and off."""
    people = [make_person(session) for _ in range(6)]
    for n in range(48):
        task = make_pairwise_task(
            session, make_prompt(session, ask(n), category=f"c{n % 4}"), a=f"one {n}", b=f"two {n}"
        )
        choose_side(session, task, {people[n % 6]: "ab"[n % 2]})
    on = freeze(session, tmp_path, HALF)
    off = {"merge_doubles": False, "max_annotator_share": 1.0, "max_prompt_share": 1.0, "max_category_share": 1.0}
    bare = freeze(session, tmp_path, SnapshotSettings(heldout_frac=0.5, reliability_weights=False, **off))
    for split in ("train", "heldout"):
        one, other = ((tmp_path / s.path / f"{split}.jsonl").read_bytes() for s in (on, bare))
        assert one == other
    assert on.manifest["shares"]["annotators"]["n"] == 6
    assert "counts alike" in bare.manifest["weights"]["pairs"]["undefined"]


def test_one_account_that_floods_is_held_to_its_share_of_the_training_side(session: Session, tmp_path: Path) -> None:
    people = [make_person(session) for _ in range(11)]
    for n in range(150):
        who = people[0] if n < 80 else people[1 + n % 10]
        task = make_pairwise_task(session, make_prompt(session, ask(n)), a=f"one {n}", b=f"two {n}")
        choose_side(session, task, {who: "a"})
    snapshot = freeze(session, tmp_path, HALF)
    train = load_pairs(tmp_path / snapshot.path, "train")
    number = Counter(p.votes[0].annotator for p in train).most_common(1)[0][0]
    share = sum(p.weight for p in train if p.votes[0].annotator == number) / sum(p.weight for p in train)
    facts = snapshot.manifest["shares"]["annotators"]
    assert facts["most"] > 0.4
    assert share == pytest.approx(facts["left"], abs=1e-3) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "redacted", "n"),
    [
        ("Write to jo.smith+x@mail.example.org now", "Write to [EMAIL] now", 1),
        ("Call +49 170 1234567 or (020) 7946 0958.", "Call [PHONE] or [PHONE].", 2),
        ("Card 4111 1111 1111 1111 from 192.168.0.17", "Card [CARD] from [IP]", 2),
        ("In 1999 it had 12 rooms, 3.5 baths and cost 250000.", None, 0),
    ],
)
def test_what_identifies_people_is_redacted_everywhere(
    session: Session, tmp_path: Path, text: str, redacted: str | None, n: int
) -> None:
    for number in range(12):
        rate(session, ask(number))
    rate(session, text, a=f"{text} a", b=f"{text} b")
    snapshot = freeze(session, tmp_path, HALF)
    (pair,) = [p for p in all_pairs(tmp_path, snapshot) if p.chosen.endswith(" a")]
    expected = redacted or text
    assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == (expected, f"{expected} a", f"{expected} b")
    assert snapshot.manifest["counts"]["redactions"] == 3 * n
    assert (
        session.scalar(select(func.count(Completion.id)).where(Completion.text == f"{text} a")) == 1
    )  # not the source


# --- what is refused


def test_nothing_to_freeze_says_what_to_do(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="0 training and 0 held-out.*Collect more judgments"):
        freeze(session, tmp_path, HALF)
    for n in range(6):
        rate(session, ask(n)).simulated = True
    with pytest.raises(InvalidInput, match="left_out_simulated.*6.*DUNNOCK_SNAPSHOT__INCLUDE_SIMULATED"):
        freeze(session, tmp_path, HALF)
    assert session.scalar(select(func.count(Snapshot.id))) == 0


def test_one_side_alone_is_no_snapshot(session: Session, tmp_path: Path) -> None:
    rate(session, ask(1))
    with pytest.raises(InvalidInput, match="both sides need some"):
        freeze(session, tmp_path, HALF)


@pytest.mark.parametrize("damage", ["change", "add", "remove"])
def test_a_damaged_snapshot_is_refused(session: Session, tmp_path: Path, damage: str) -> None:
    for n in range(12):
        rate(session, ask(n))
    snapshot = freeze(session, tmp_path, HALF)
    folder = tmp_path / snapshot.path
    train = folder / "train.jsonl"
    if damage == "change":
        train.write_text(train.read_text().replace('"yes"', '"yep"', 1))
    elif damage == "add":
        (folder / "more.jsonl").write_text("{}\n")
    else:
        (folder / "manifest.json").unlink()
    for split in ("train", "heldout"):
        with pytest.raises(ArtifactError, match="changed or damaged"):
            load_pairs(folder, split, expected_sha256=snapshot.content_sha256)


def test_an_unknown_snapshot_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound, match="no snapshot 7"):
        find_snapshot(session, 7)


def test_pairs_are_json_that_other_tools_read(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        rate(session, ask(n))
    snapshot = freeze(session, tmp_path, HALF)
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / snapshot.path / "train.jsonl").read_text().splitlines()
    ]
    assert {"prompt", "chosen", "rejected", "margin", "simulated", "cluster"} <= rows[0].keys()


# --- weights, ties and verdicts


def test_ties_are_there_for_who_asks(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        rate(session, ask(n))
    for n in range(30, 42):
        tie = rate(session, ask(n))
        tie.choice, tie.strength = "tie", 0
    snapshot = freeze(session, tmp_path, HALF)
    folder = tmp_path / snapshot.path
    assert len(all_pairs(tmp_path, snapshot)) == 12
    every = [p for split in ("train", "heldout") for p in load_pairs(folder, split, ties=True)]
    assert Counter(p.target for p in every) == {1.0: 12, 0.5: 12}


def test_ties_alone_are_no_snapshot(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        rate(session, ask(n)).choice = "tie"
    with pytest.raises(InvalidInput, match="0 training and 0 held-out"):
        freeze(session, tmp_path, HALF)


def test_who_errs_weighs_less_and_is_a_number(session: Session, tmp_path: Path) -> None:
    """Cleo says what chance says; her number is not her id, and the others' pairs weigh more than hers."""
    make_person(session)  # so that ids are no ranks
    ana, ben, cleo = (make_person(session) for _ in range(3))
    rng = random.Random(2)
    for n in range(60):
        better = rng.choice("ab")
        task = make_pairwise_task(session, make_prompt(session, ask(n)), a=f"one {n}", b=f"two {n}")
        choose_side(session, task, {ana: better, ben: better, cleo: rng.choice("ab")})
    alone = make_pairwise_task(session, make_prompt(session, ask(70)), a="hers", b="not hers")
    choose_side(session, alone, {cleo: "a"})
    snapshot = freeze(session, tmp_path, HALF)
    pairs = {p.chosen: p for p in all_pairs(tmp_path, snapshot)}
    assert {vote.annotator for p in pairs.values() for vote in p.votes} == {0, 1, 2}
    assert all(isinstance(vote, Vote) for p in pairs.values() for vote in p.votes)
    weights = {vote.annotator: vote.weight for p in pairs.values() for vote in p.votes}
    assert weights[2] < 0.5 < weights[0]
    assert pairs["hers"].weight == weights[2]
    assert pairs["hers"].target == 1.0
    facts = snapshot.manifest["weights"]["pairs"]
    assert (facts["annotators"], facts["least"]) == (3, weights[2])
    assert facts["least"] < facts["mean"] < facts["most"]


def test_older_rounds_weigh_less_and_freezing_again_changes_nothing(session: Session, tmp_path: Path) -> None:
    settings = SnapshotSettings(heldout_frac=0.5, round_decay=0.5)
    first = {rate(session, ask(n)).id for n in range(12)}
    one = freeze(session, tmp_path, settings)
    assert {p.weight for p in all_pairs(tmp_path, one)} == {1.0}
    assert freeze(session, tmp_path, settings).id == one.id
    second = {rate(session, ask(n)).id for n in range(12, 24)}
    two = freeze(session, tmp_path, settings)
    assert freeze(session, tmp_path, settings).id == two.id
    rate(session, ask(24))
    three = freeze(session, tmp_path, settings)
    found = Counter(p.weight for p in all_pairs(tmp_path, three))
    assert found == {0.25: len(first), 0.5: len(second), 1.0: 1}
    assert three.manifest["weights"]["rounds"] == 3


def test_verdicts_become_rule_examples(session: Session, tmp_path: Path) -> None:
    """Two reliable people and one who says "broken" of everything: his word alone moves little."""
    for n in range(12):
        rate(session, ask(n))
    ana, ben, cleo = (make_person(session) for _ in range(3))
    rule = make_rule(session, "no_threats", "Do not threaten anybody, jo@example.org says.")
    rng = random.Random(4)
    said = [{ana: v, ben: v, cleo: "broken"} for v in (rng.choice(["broken", "kept"]) for _ in range(40))]
    tasks = checks(session, rule.id, said)
    [one] = checks(session, rule.id, [{cleo: "broken"}])
    [unsure] = checks(session, rule.id, [{ana: "unsure"}])
    snapshot = freeze(session, tmp_path, HALF)
    folder = tmp_path / snapshot.path
    examples = [e for split in ("train", "heldout") for e in load_rule_examples(folder, split)]
    found = {e.completion: e for e in examples}
    assert len(examples) == 41
    assert unsure.completions[0].text not in found
    for task, verdicts in zip(tasks, said, strict=True):
        example = found[task.completions[0].text]
        assert (example.broken > 0.9) == (verdicts[ana] == "broken")
        assert (example.broken < 0.1) == (verdicts[ana] == "kept")
        assert (example.rule, example.verdicts, example.weight) == ("no_threats", 3, 1.0)
    assert 0.3 < found[one.completions[0].text].broken < 0.7
    assert snapshot.manifest["n_rules_train"] + snapshot.manifest["n_rules_heldout"] == 41
    assert len({e.cluster for e in examples}) == len({json.dumps(e.prompt) for e in examples})
    used = set(session.scalars(select(Judgment.id).where(Judgment.task_id == one.id)))
    assert used <= set(snapshot.manifest["judgment_ids"])


def test_few_verdicts_are_taken_at_nine_in_ten(session: Session, tmp_path: Path) -> None:
    for n in range(12):
        rate(session, ask(n))
    ana, ben = make_person(session), make_person(session)
    rule = make_rule(session)
    checks(
        session, rule.id, [{ana: "broken"}, {ana: "kept"}, {ana: "broken", ben: "broken"}, {ana: "kept", ben: "broken"}]
    )
    folder = tmp_path / freeze(session, tmp_path, HALF).path
    found = sorted(e.broken for split in ("train", "heldout") for e in load_rule_examples(folder, split))
    assert found == [0.1, 0.5, 0.9, 0.988]  # 0.81 / (0.81 + 0.01)


def test_an_older_snapshot_loads(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": "yes",
        "rejected": "no",
        "margin": 2.0,
        "source": "choice:1",
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (pair,) = load_pairs(tmp_path, "train")
    assert (pair.weight, pair.target, pair.votes, pair.tie) == (1.0, 1.0, [], False)
    assert load_rule_examples(tmp_path, "train") == []
