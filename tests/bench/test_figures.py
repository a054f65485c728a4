"""What the goals name is computed right from given figures, and a run that ends early keeps what it has."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.annotation.figures import Figures, ratios


def loops(next_ms: float, submit_ms: float, rate: float) -> dict[str, Any]:
    return {"open": {"next": {"p99_ms": next_ms}, "submit": {"p99_ms": submit_ms}}, "closed": {"tasks_per_s": rate}}


def closed(rate: float) -> dict[str, Any]:
    return {"closed": {"tasks_per_s": rate}}


def test_growth_is_the_larger_of_the_two_calls() -> None:
    found = ratios({"dunnock": {"10000": loops(20.0, 10.0, 300.0), "1000000": loops(22.0, 15.0, 280.0)}})
    assert found == {"next_p99_ms_1m": 22.0, "submit_p99_ms_1m": 15.0, "growth_p99_10k_to_1m": 1.5}


def test_a_tool_counts_with_its_fastest_setup_at_ten_thousand() -> None:
    targets = {
        "dunnock": {"10000": loops(20.0, 10.0, 300.0), "100000": loops(20.0, 10.0, 900.0)},
        "label_studio": {"10000": closed(4.0), "100000": closed(500.0)},
        "label_studio_tuned": {"10000": closed(12.0)},
        "potato": {"10000": closed(20.0)},
        "potato_one_at_a_time": {"10000": closed(15.0)},
    }
    assert ratios(targets) == {
        "throughput_vs_label_studio": 25.0,
        "throughput_vs_label_studio_as_installed": 75.0,
        "throughput_vs_potato": 15.0,
        "throughput_vs_potato_as_installed": 15.0,
    }


@pytest.mark.parametrize(
    "targets",
    [
        {},
        {"label_studio": {"10000": closed(4.0)}},
        {"dunnock": {"10000": {"not_done": "why"}}, "potato": {"10000": closed(4.0)}},
        {"dunnock": {"10000": closed(100.0)}, "potato": {"10000": {"not_done": "why"}}},
        {"dunnock": {"10000": closed(100.0)}, "label_studio": {"10000": closed(0.0)}},
    ],
)
def test_what_was_not_measured_gives_no_ratio(targets: dict[str, Any]) -> None:
    assert ratios(targets) == {}


def test_every_figure_is_on_disk_at_once(tmp_path: Path) -> None:
    out = tmp_path / "annotation.json"
    figures = Figures(out, {"seconds": 20})
    figures.put("dunnock", 10_000, closed(300.0))
    assert json.loads(out.read_text())["targets"] == {"dunnock": {"10000": closed(300.0)}}
    figures.put("potato", 10_000, {"filled_s": 4.0, "versions": {"potato-annotation": "2.12.1"}})
    figures.put("potato", 10_000, closed(15.0))
    kept = json.loads(out.read_text())
    assert kept["targets"]["potato"] == {"10000": {"filled_s": 4.0, **closed(15.0)}}
    assert kept["ratios"] == {"throughput_vs_potato": 20.0, "throughput_vs_potato_as_installed": 20.0}
    assert kept["versions"]["potato-annotation"] == "2.12.1"
    assert kept["machine"]["cores"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["annotation.json"]
