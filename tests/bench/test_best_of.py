from bench.serving.best_of import Asked, compare


def asked(risk: float, good: tuple[bool, ...], scores: tuple[float, ...] = (0.0, 2.0)) -> Asked:
    return Asked(risk, scores, (10, 10), good)


RISKY, SAFE = asked(0.9, (False, True)), asked(0.1, (True, True))


def test_more_is_drawn_where_that_makes_a_difference() -> None:
    found = compare([RISKY, SAFE, SAFE, SAFE] * 10, risk=0.5)
    assert found["always_1"]["tokens"] == 10 * found["prompts"]
    assert found["always_n"]["tokens"] == 20 * found["prompts"]
    risky = found["share_that_drew_more"] * found["prompts"]
    assert found["adaptive"]["tokens"] == 10 * (found["prompts"] + risky)
    assert found["adaptive"]["good"] == found["always_n"]["good"] == 1.0
    assert found["always_1"]["good"] < 1.0
    assert found["good_adaptive_less_always_n"]["mean"] == 0.0
    assert found["good_adaptive_less_always_1"]["low"] > 0.0


def test_the_risk_is_the_highest_that_is_as_good_as_always_more() -> None:
    assert compare([RISKY, SAFE] * 20)["risk"] == 0.9
    assert compare([SAFE] * 20)["risk"] is None
    harmed = asked(0.5, (True, False))  # what scores higher is worse: nothing is gained by drawing
    assert compare([harmed] * 20)["risk"] is None


def test_the_curve_goes_from_one_to_n() -> None:
    curve = compare([RISKY, SAFE] * 20)["curve"]
    assert [curve[0]["tokens"], curve[-1]["tokens"]] == [0.5, 1.0]
    assert curve[0]["good"] < curve[-1]["good"] == 1.0
