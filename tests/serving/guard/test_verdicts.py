from serving.guard.verdicts import Verdict, first_stop, merge

HIT = Verdict("secrets", "output", "hit", "jwt", upto=5, start=5, end=9, quote="eyJ…")
CLEAR = Verdict("rules", "output", "clear", "be kind", 7, score=0.2, threshold=0.5, latency_s=0.25, upto=48)


def test_json_has_no_text_unless_asked_for() -> None:
    said = HIT.as_json()
    assert said == {
        "check": "secrets", "side": "output", "outcome": "hit", "kind": "jwt", "latency_s": 0.0, "upto": 5, "start": 5, "end": 9,
    }  # fmt: skip
    assert HIT.as_json(with_text=True) == {**said, "quote": "eyJ…"}
    assert "eyJ" not in repr(HIT)


def test_json_keeps_a_score_of_nothing() -> None:
    said = Verdict("rules", "output", "clear", rule_version_id=7, score=0.0, threshold=0.5).as_json()
    assert (said["score"], said["rule_version_id"]) == (0.0, 7)
    assert "kind" not in said


def test_what_stops() -> None:
    late, unseen = Verdict("rules", "output", "timed_out"), Verdict("pii", "output", "not_scanned")
    assert first_stop([CLEAR, unseen, late], fail_closed=True) is late
    assert first_stop([unseen, HIT, late], fail_closed=True) is HIT
    assert first_stop([unseen, late], fail_closed=False) is None
    assert first_stop([unseen, HIT], fail_closed=False) is HIT
    assert first_stop([CLEAR], fail_closed=True) is None


def test_of_pieces_the_gravest_outcome_stays() -> None:
    later = Verdict("rules", "output", "clear", "be kind", 7, score=0.4, threshold=0.5, latency_s=0.5, upto=90)
    (both,) = merge([CLEAR, later])
    assert (both.outcome, both.score, both.latency_s, both.upto) == ("clear", 0.4, 0.75, 90)
    late = Verdict("rules", "output", "timed_out", "be kind", 7, latency_s=2.0)
    (three,) = merge([CLEAR, late, later])
    assert (three.outcome, three.score, three.latency_s) == ("timed_out", 0.4, 2.75)
    other = Verdict("rules", "output", "clear", "be brief", 8)
    assert len(merge([CLEAR, other, later])) == 2
