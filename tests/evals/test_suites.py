"""Properties of the starter evaluation suites in evals/suites."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

SUITES = Path(__file__).resolve().parents[2] / "evals" / "suites"
PARTS = {"seed", "frozen"}


def load(name):
    with open(SUITES / name, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


HARMFUL = load("harmful.jsonl")
BENIGN = load("benign.jsonl")
CAPABILITY = load("capability.jsonl")
CAPABILITY_SEED = load("capability_seed.jsonl")
LABELS = load("judge_labels.jsonl")


def words(text):
    return re.findall(r"\w+", text.casefold())


def char_grams(text):
    s = " ".join(words(text))
    return {s[i : i + 3] for i in range(len(s) - 2)}


def word_grams(text):
    w = words(text)
    return set(zip(w, w[1:], w[2:], strict=False))


def jaccard(a, b):
    union = len(a | b)
    return len(a & b) / union if union else 0.0


def too_close(left, right, limit=0.6):
    """Pairs whose character or word 3-gram similarity reaches the limit."""
    bad = []
    for grams in (char_grams, word_grams):
        right_grams = [(t, grams(t)) for t in right]
        for a in left:
            ga = grams(a)
            bad += [(a, b) for b, gb in right_grams if jaccard(ga, gb) >= limit]
    return bad


def test_counts():
    assert len(HARMFUL) == 384
    assert len(BENIGN) == 528
    assert len(CAPABILITY) == 80
    assert len(CAPABILITY_SEED) == 60
    assert len(LABELS) == 240


def test_row_fields():
    for r in HARMFUL:
        assert set(r) == {"id", "category", "topic", "part", "text"}
    for r in BENIGN:
        assert set(r) == {"id", "kind", "category", "topic", "part", "text", "reference"}
    for r in CAPABILITY + CAPABILITY_SEED:
        assert set(r) == {"id", "question", "right", "wrong"}
    for r in LABELS:
        assert set(r) == {"id", "part", "prompt", "completion", "label"}
    for r in HARMFUL + BENIGN + CAPABILITY + CAPABILITY_SEED + LABELS:
        for key, value in r.items():
            for s in value if key == "wrong" else [value]:
                assert isinstance(s, str), r["id"]
                assert s, r["id"]
                assert s == s.strip(), r["id"]


def test_harmful_categories():
    by_category = Counter(r["category"] for r in HARMFUL)
    assert len(by_category) == 12  # the project needs at least 10
    assert set(by_category.values()) == {32}
    topics = defaultdict(set)
    for r in HARMFUL:
        assert r["id"].startswith(f"harm-{r['category']}-")
        topics[r["category"]].add(r["topic"])
    assert all(7 <= len(t) <= 9 for t in topics.values())
    split = Counter((r["category"], r["part"]) for r in HARMFUL)
    for category in by_category:
        assert split[category, "seed"] >= 23
        assert split[category, "frozen"] >= 8


def test_harmful_length():
    for r in HARMFUL:
        assert 6 <= len(r["text"].split()) <= 30, r["id"]


def test_parts():
    for rows in (HARMFUL, BENIGN):
        parts = Counter(r["part"] for r in rows)
        assert set(parts) == PARTS
        assert min(parts.values()) >= 96


def test_topics_do_not_cross_the_split():
    part_of = defaultdict(set)
    for r in HARMFUL + BENIGN:
        part_of[r["topic"]].add(r["part"])
    assert [t for t, parts in part_of.items() if len(parts) > 1] == []
    # A topic also stays inside one category of one suite.
    home = defaultdict(set)
    for r in HARMFUL + BENIGN:
        home[r["topic"]].add((r.get("kind", "harmful"), r["category"]))
    assert [t for t, homes in home.items() if len(homes) > 1] == []


def test_benign_kinds():
    split = Counter((r["kind"], r["part"]) for r in BENIGN)
    assert split == {
        ("lookalike", "seed"): 279,
        ("lookalike", "frozen"): 51,
        ("ordinary", "seed"): 147,
        ("ordinary", "frozen"): 51,
    }
    for part in PARTS:  # at least half are look-alikes
        assert split["lookalike", part] >= split["ordinary", part]
    harm_categories = {r["category"] for r in HARMFUL}
    lookalike = {r["category"] for r in BENIGN if r["kind"] == "lookalike"}
    ordinary = {r["category"] for r in BENIGN if r["kind"] == "ordinary"}
    assert lookalike == harm_categories
    assert len(ordinary) >= 10
    assert not ordinary & harm_categories


def test_benign_references():
    for r in BENIGN:
        assert 20 <= len(r["reference"].split()) <= 45, r["id"]
    refs = [r["reference"].casefold() for r in BENIGN]
    assert len(set(refs)) == len(refs)


def test_unique_ids_and_texts():
    rows = HARMFUL + BENIGN + CAPABILITY + CAPABILITY_SEED + LABELS
    ids = [r["id"] for r in rows]
    assert len(set(ids)) == len(ids)
    texts = [r["text"] for r in HARMFUL + BENIGN] + [r["prompt"] for r in LABELS]
    texts += [r["question"] for r in CAPABILITY + CAPABILITY_SEED]
    counts = Counter(" ".join(words(t)) for t in texts)
    assert [t for t, n in counts.items() if n > 1] == []


def test_seed_and_frozen_are_not_paraphrases():
    rows = HARMFUL + BENIGN
    seed = [r["text"] for r in rows if r["part"] == "seed"]
    frozen = [r["text"] for r in rows if r["part"] == "frozen"]
    assert too_close(seed, frozen) == []


def test_later_seed_rows_are_far_from_the_frozen_part():
    # The rows added later keep a closer limit. Only their own ids are shown: the frozen part is a blind test.
    def number(r):
        return int(r["id"].rsplit("-", 1)[1])

    added = [r for r in HARMFUL if number(r) > 200] + [r for r in BENIGN if number(r) > 300]
    assert len(added) == 360
    assert {r["part"] for r in added} == {"seed"}
    frozen = [word_grams(r["text"]) for r in HARMFUL + BENIGN if r["part"] == "frozen"]
    near = [r["id"] for r in added if any(jaccard(word_grams(r["text"]), f) > 0.3 for f in frozen)]
    assert near == []


def test_capability_seed_is_not_a_paraphrase_of_the_measured_items():
    assert too_close([r["question"] for r in CAPABILITY_SEED], [r["question"] for r in CAPABILITY]) == []


def test_labelled_prompts_are_not_frozen_prompts():
    frozen = [r["text"] for r in HARMFUL + BENIGN if r["part"] == "frozen"]
    assert too_close([r["prompt"] for r in LABELS], frozen) == []


def test_labels_balanced():
    split = Counter((r["part"], r["label"]) for r in LABELS)
    assert split == {
        ("dev", "refuses"): 60,
        ("dev", "complies"): 60,
        ("test", "refuses"): 60,
        ("test", "complies"): 60,
    }


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_label_parts_share_no_near_identical_sentences(field):
    def sentences(part):
        return {
            s for r in LABELS if r["part"] == part for s in re.split(r"(?<=[.!?:])\s+", r[field]) if len(words(s)) >= 3
        }

    assert too_close(sentences("dev"), sentences("test")) == []


def test_capability_options():
    for r in CAPABILITY + CAPABILITY_SEED:
        options = [r["right"], *r["wrong"]]
        assert len(r["wrong"]) == 3, r["id"]
        assert len({o.casefold() for o in options}) == 4, r["id"]
        assert all(len(o.split()) <= 5 for o in options), r["id"]
