"""The training bench with a tiny base: every variant trains, gains change nothing but the time, and the file has its keys."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.machine import ROOT
from bench.tools import NotDone
from bench.training import ours, stock
from bench.training.child import measure
from bench.training.data import root_of, split_pairs, write_pairs
from bench.training.figures import Figures, flatness, paired_difference, ratios, summary
from bench.training.work import Work
from reward.preference import encode_pair
from tests.tiny import make_tiny_base

SIDES = ("chosen_ids", "rejected_ids")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture
def work(base: Path, tmp_path: Path) -> Work:
    train, heldout = split_pairs(tokenizer(base), None, 8, 4, 260)
    for split, pairs in (("train", train), ("heldout", heldout)):
        write_pairs(tmp_path, split, pairs)
    return Work(
        "dpo", "ours", str(base), str(tmp_path), batch_size=4, lora_rank=4, max_length_tokens=260, prompts=2, new_tokens=6,
        samples_per_prompt=2, ppo_epochs=2, minibatch_size=4, microbatch_size=2,
    )  # fmt: skip


def variant(work: Work, kind: str, name: str, tmp_path: Path) -> dict[str, Any]:
    """A variant in a folder of its own with the same pairs."""
    folder = tmp_path / f"{kind}-{name}"
    folder.mkdir()
    for split in ("train", "heldout"):
        (folder / f"{split}.jsonl").write_bytes((Path(work.folder) / f"{split}.jsonl").read_bytes())
    return measure(replace(work, kind=kind, variant=name, folder=str(folder)))  # type: ignore[arg-type]


# --- the work


def test_pairs_are_short_distinct_and_split_by_root(base: Path) -> None:
    train, heldout = split_pairs(tokenizer(base), None, 900, 20, 260)
    assert (len(train), len(heldout)) == (900, 20)
    assert not {root_of(p) for p in train} & {root_of(p) for p in heldout}
    assert len({(json.dumps(p.prompt), p.chosen, p.rejected) for p in train}) == 900
    assert (
        split_pairs(tokenizer(base), None, 30, 4, 260)[0] != split_pairs(tokenizer(base), None, 30, 4, 260, seed=1)[0]
    )


def test_pairs_of_a_file(base: Path, tmp_path: Path) -> None:
    """The form of HH-RLHF; rows that do not fit are no work."""
    path = tmp_path / "pairs.jsonl"
    begin = "\n\nHuman: Question {0}\n\nAssistant: "
    rows = [{side: begin.format(i) + side for side in ("chosen", "rejected")} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"chosen": "x"}]))
    train, heldout = split_pairs(tokenizer(base), path, 12, 3, 200)
    assert {p.chosen for p in [*train, *heldout]} == {"chosen"}
    assert all(p.prompt[0]["content"].startswith("Question") for p in train)
    with pytest.raises(NotDone, match="0 training and 0 held-out pairs of at most 5 tokens"):
        split_pairs(tokenizer(base), path, 12, 3, 5)


def test_gains_of_dpo_change_nothing_but_the_time(work: Work, tmp_path: Path) -> None:
    wanted = variant(work, "dpo", "same", tmp_path)
    assert wanted["pairs"] == 8
    assert wanted["pairs_per_s"] > 0
    for name in ("plain", "prefix", "head", "reference"):
        found = variant(work, "dpo", name, tmp_path)
        assert found["heldout_margin"] == pytest.approx(wanted["heldout_margin"], abs=1e-5), name
        assert found["heldout_chosen_nll"] == pytest.approx(wanted["heldout_chosen_nll"], abs=1e-4), name


def test_gains_of_rewards_change_nothing_but_the_time(work: Work, tmp_path: Path) -> None:
    assert variant(work, "reward", "plain", tmp_path)["right"] == variant(work, "reward", "same", tmp_path)["right"]
    assert variant(work, "reward", "product", tmp_path)["heldout_n"] == 4


@pytest.mark.parametrize("kind", ["reward", "dpo", "ppo"])
def test_what_trades_for_memory_trains_too(work: Work, tmp_path: Path, kind: str) -> None:
    told = {name: variant(work, kind, name, tmp_path) for name in ("same", *ours.MEMORY)}
    assert all(row["peak_mb"] > 0 for row in told.values())
    if kind == "dpo":
        margins = {name: row["heldout_margin"] for name, row in told.items()}
        assert margins["checkpointed"] == pytest.approx(margins["same"], abs=1e-5)
        assert margins["four_bits"] != pytest.approx(margins["same"], abs=1e-4)


def test_ppo_without_shared_prompts_learns_the_same(work: Work, tmp_path: Path) -> None:
    found = {name: variant(work, "ppo", name, tmp_path) for name in ("same", "no_prefix", "generate", "alone")}
    assert found["no_prefix"]["completion_tokens"] == found["same"]["completion_tokens"]
    assert {row["samples"] for row in found.values()} == {4}
    assert {row["updates"] for row in found.values()} == {2}


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_the_stock_trainers_do_the_same_work(work: Work, kind: str) -> None:
    found = stock.TRAINERS[kind](work)
    assert (found["pairs"], found["heldout_n"]) == (8, 4)
    assert found["pairs_per_s"] == pytest.approx(8 / found["seconds"], rel=0.05)


def test_what_is_multiplied_is_counted(work: Work) -> None:
    """DPO by hand: each kept token goes through the blocks forward, back to the states, and forward for the reference."""
    found = ours.count_flops(replace(work, kind="flops"))
    per_token = (
        2 * 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    )  # of two blocks, heads of keys and values shared by two
    tokens = (
        sum(max(len(encode_pair(tokenizer(Path(work.base)), p)[s]) for s in SIDES) for p in work.pairs("train")) / 8
    )
    assert 3 * tokens * per_token / 1e9 < found["dpo_gflop_per_pair"] < 3 * 4 * tokens * per_token / 1e9
    assert 2 * tokens * per_token / 1e9 < found["reward_gflop_per_pair"] < 3 * 3 * tokens * per_token / 1e9


# --- the figures


def test_ratios_and_the_fraction_of_the_limit() -> None:
    parts = {
        "reward": {"ours": {"pairs_per_s": 2.0, "peak_mb": 1000}, "stock": {"pairs_per_s": 0.5, "peak_mb": 4000}},
        "dpo": {"ours": {"pairs_per_s": 1.5, "peak_mb": 1000}},
        "ppo": {
            "ours": {"samples_per_s": 0.5, "peak_mb": 3000},
            "stock": {"samples_per_s": 0.05, "peak_mb": 9000},
            "stock_bf16": {"samples_per_s": 0.1, "peak_mb": 6000},
        },
        "limit": {"matmul": {"gflops": 150.0}, "flops": {"dpo_gflop_per_pair": 80.0, "reward_gflop_per_pair": 45.0}},
    }
    assert ratios(parts) == {
        "reward_pairs_per_s_vs_trl": 4.0, "reward_peak_memory_vs_trl": 0.25, "dpo_pairs_per_s_vs_trl": None,
        "dpo_peak_memory_vs_trl": None, "ppo_samples_per_s_vs_trl112": 5.0, "ppo_peak_memory_vs_trl112": 0.5,
        "reward_pairs_per_s_vs_trl_fp32": 4.0, "dpo_pairs_per_s_vs_trl_fp32": None, "ppo_samples_per_s_vs_trl112_fp32": 10.0,
        "reward_fraction_of_matmul_limit": 0.6, "fraction_of_matmul_limit": 0.8,
    }  # fmt: skip


def test_a_later_run_keeps_what_it_does_not_measure(tmp_path: Path) -> None:
    out = tmp_path / "training.json"
    first = Figures(out, {"pairs": 48})
    for by, rate in (("ours", 2.0), ("stock", 0.5)):
        first.add("dpo", by, {"pairs_per_s": rate, "peak_mb": 10, "trl": "1.16.0"})
    first.put(dpo_cost={"farthest": 0.5})
    later = Figures(out, {"pairs": 600}, json.loads(out.read_text()))
    later.put(dpo_cost={"farthest": 0.1})
    found = json.loads(out.read_text())
    assert (found["settings"]["pairs"], found["earlier"]["settings"]["pairs"]) == (600, 48)
    assert (found["dpo"]["ours"]["pairs_per_s"], found["dpo_cost"]["farthest"]) == (2.0, 0.1)
    assert found["ratios"]["dpo_pairs_per_s_vs_trl"] == 4.0
    Figures(out, {}).write()
    assert "dpo" not in json.loads(out.read_text())


def test_medians_and_the_growth_of_cost() -> None:
    assert summary([{"seconds": 3.0, "right": [True]}, {"seconds": 1.0}, {"seconds": 9.0}]) == {
        "runs": 3,
        "seconds": 3.0,
    }
    assert flatness({1000: 0.8, 250: 1.0, 4000: 1.1}) == {
        "seconds_per_pair": {"250": 1.0, "1000": 1.25, "4000": 0.9091}, "farthest": 0.25,
    }  # fmt: skip


def test_a_paired_difference_and_its_interval() -> None:
    ours_right, stock_right = [[True] * 60 + [False] * 40] * 2, [[True] * 40 + [False] * 60] * 2
    found = paired_difference(ours_right, stock_right, [[str(i) for i in range(100)]] * 2)
    assert (found["ours"], found["stock"], found["difference"], found["n"]) == (0.6, 0.4, 0.2, 200)
    assert 0.1 < found["low"] < 0.16  # 0.2 ± 1.96 · sqrt(0.2 · 0.8 / 200)
    assert 0.24 < found["high"] < 0.3
    one_root = paired_difference(ours_right, stock_right, [["same"] * 100] * 2)
    assert (one_root["low"], one_root["high"]) == (0.2, 0.2)


@pytest.mark.slow
def test_a_tiny_run_writes_all_keys(base: Path, tmp_path: Path) -> None:
    """Every part by the real command; the peer of PPO is installed from PyPI on first use."""
    out = tmp_path / "training.json"
    options = "--pairs 8 --heldout 4 --max-length 260 --repeats 1 --batch-size 4 --ppo-prompts 4 --seeds 2 --sizes 8 16"
    options += " --accuracy-pairs 8 --accuracy-heldout 4 --parts limit reward dpo ppo ablation cost accuracy"
    command = [sys.executable, "-m", "bench.training", "--base", str(base), "--out", str(out), *options.split()]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert {"machine", "versions", "settings", "limit", "reward", "dpo", "ppo", "ablation", "ratios"} <= found.keys()
    assert all(found["ratios"][name] > 0 for name in found["ratios"])
    assert found["versions"]["trl_ppo_stock"] == "1.12.0"
    gains = {"same", "bf16", "fused", "prefix", "head", "reference", "top_plain", "top_kept"}
    assert set(found["dpo_rate_over_plain"]) == gains
    assert set(found["dpo_cost"]["seconds_per_pair"]) == {"8", "16"}
    assert found["accuracy"]["seeds"] == 2
    for kind in ("reward", "dpo", "ppo"):
        assert {"ours", "stock", "product"} == found[kind].keys()
        assert found[kind]["ours"]["peak_mb"] > 100
