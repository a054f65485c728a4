"""What cannot be trained on, for every kind of training: a clear reason, the round failed with it, nothing half-registered.

Each case is a real stage on a tiny base: real data, learning rates that end in no numbers, a limit on this process's memory,
a disk of a few pages, and models of another base.
"""

import json
import math
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from sqlalchemy import select

from core.artifacts import hash_folder, write_json
from core.messages import user
from feedback.dataset import RuleExample
from finetune.models import StageRun
from tests.factories import make_policy_version
from tests.finetune.cases import KINDS, LONG, Build, pairs, verdicts
from tests.tiny import make_tiny_adapter, make_tiny_base

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


# --- good input, so that what fails below does so for its reason


@each_kind
def test_what_can_be_trained_on_is(build: Build, kind: str) -> None:
    case = build(kind)
    ended = case.run()
    assert ended.state == "done", ended.outcome
    with case.database.read() as session:
        (row,) = case.made(session)
    path = row.adapter_path if case.stage == "update" else row.path
    assert hash_folder(case.settings.artifact_dir / path) == (
        row.adapter_sha256 if case.stage == "update" else row.sha256
    )


# --- snapshots

SNAPSHOTS = [
    ("reward", "empty", ([], []), "0 training and 0 held-out pairs are usable; a reward model needs at least 8 and 1"),
    ("reward", "tiny", (pairs(0, 7), pairs(1000, 2)), "7 training and 2 held-out pairs are usable"),
    ("reward", "nothing held out", (pairs(0, 20), []), "20 training and 0 held-out pairs are usable"),
    ("reward", "ties alone", ([replace(p, target=0.5) for p in pairs(0, 20)], pairs(1000, 2)), "0 training and 2"),
    ("reward", "equal", ([replace(p, rejected=p.chosen) for p in pairs(0, 20)], pairs(1000, 2)), "0 training and 2"),
    ("dpo", "empty", ([], []), "0 usable pairs (0 of 0 dropped for more than 512 tokens, 0 ties, 0 with equal sides)"),
    ("dpo", "tiny", (pairs(0, 7), pairs(1000, 2)), "7 usable pairs"),
    ("dpo", "ties alone", ([replace(p, target=0.5) for p in pairs(0, 20)], pairs(1000, 2)), "0 usable pairs (0 of 20 dropped for more than 512 tokens, 20 ties"),
    ("dpo", "equal", ([replace(p, rejected=p.chosen) for p in pairs(0, 20)], pairs(1000, 2)), "20 with equal sides"),
    ("dpo", "long", ([replace(p, chosen=LONG * 400) for p in pairs(0, 20)], pairs(1000, 2)), "20 of 20 dropped for more than 512 tokens"),
    ("ppo", "empty", ([], []), "the snapshot has no pairs to train on, so there are no prompts"),
    ("rloo", "empty", ([], []), "the snapshot has no pairs to train on, so there are no prompts"),
    ("ppo", "long", ([replace(p, prompt=user(LONG * 400)) for p in pairs(0, 9)], []), "none of 1 prompts leaves room for 4 tokens within 512"),
    ("rloo", "long", ([replace(p, prompt=user(LONG * 400)) for p in pairs(0, 9)], []), "none of 1 prompts leaves room for 4 tokens within 512"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "splits", "reason"),
    [pytest.param(kind, splits, reason, id=f"{kind}-{what}") for kind, what, splits, reason in SNAPSHOTS],
)
def test_snapshots_without_enough_to_learn(build: Build, kind: str, splits: Any, reason: str) -> None:
    build(kind, *splits).fails(reason)


@pytest.mark.parametrize(
    ("what", "given", "reason"),
    [
        ("empty", [], "only 0 verdicts on rules are to be trained on; at least 16 are needed"),
        ("tiny", verdicts(0, 15), "only 15 verdicts"),
        ("one-sided", [replace(v, broken=0.95) for v in verdicts(0, 20)], "all 20 verdicts say the same"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_verdicts_without_enough_to_learn_make_no_model_and_say_so(
    build: Build, what: str, given: list[RuleExample], reason: str
) -> None:
    """A round goes on without a reward model of rules; that there is none, and why, stands in its result."""
    case = build("rules", given)
    assert case.run().state == "done"
    with case.database.read() as session:
        stage = session.scalars(select(StageRun).where(StageRun.name == "reward")).one()
        assert reason in (stage.result or {})["rules"]["undefined"]
        assert not case.made(session)
    assert case.left() == []


def test_verdicts_that_are_all_too_long(build: Build) -> None:
    build("rules", verdicts(0, 20, LONG * 400)).fails("no rule reward model: only 0 verdicts")


@pytest.mark.parametrize("kind", ["ppo", "rloo"])
def test_one_prompt_and_rewards_that_are_all_alike_teach_nothing_and_break_nothing(
    build: Build, reward_model: Path, base: Path, tmp_path: Path, kind: str
) -> None:
    """Advantages are 0 then, and dividing by their deviation must not make them no numbers."""
    from reward.members import Members

    mute = tmp_path / "mute"
    shutil.copytree(reward_model, mute)
    (member,) = json.loads((mute / "run.json").read_text())["scored_by"]
    weights = load_file(mute / member / "adapter_model.safetensors")
    for name in [name for name in weights if "score" in name]:
        weights[name].zero_()
    save_file(weights, mute / member / "adapter_model.safetensors", metadata={"format": "pt"})
    scores = Members.load({member: mute / member}, base, "cpu").scores([[5, 6, 7], [8, 9]])
    assert scores.abs().max() == 0
    record = json.loads((mute / "run.json").read_text())
    write_json(mute / "run.json", record | {"offsets": [0.0], "probe": [0.0, 0.0]})
    case = build(kind, pairs(0, 1), scorer=mute)
    ended = case.run()
    assert ended.state == "done", ended.outcome
    record = json.loads((case.settings.artifact_dir / f"adapters/v{case.cycle_id}/run.json").read_text())
    assert record["n_prompts"] == 1
    assert all(row["reward"] == pytest.approx(-1.0 if kind == "rloo" else 0.0) for row in record["log"])
    assert all(math.isfinite(row["loss"]) for row in record["log"])


# --- no numbers


@each_kind
def test_a_learning_rate_that_ends_in_no_numbers(build: Build, kind: str) -> None:
    """Weights of 1e30 after the first step, and no number after the second."""
    changes = {"learning_rate": 1e30}
    if kind in ("reward", "dpo"):
        changes["epochs"] = 3.0
    if kind in ("ppo", "rloo"):
        changes |= {"steps": 4, "kl_limit": 0.0, "step_kl_limit": 0.0} if kind == "ppo" else {"steps": 4}
    build(kind, **changes).fails("nothing is registered")


# --- no room


@contextmanager
def address_space(more_mb: int) -> Iterator[None]:
    """While the block runs, this process may have so much more memory than it has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more_mb * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@each_kind
def test_a_batch_that_does_not_fit_into_memory(build: Build, kind: str) -> None:
    """400 sequences of about 450 tokens in one batch, of PPO 800, where there is a part of the memory for that."""
    more = LONG * 40
    n = 400 if kind == "ppo" else 200
    if kind in ("reward", "dpo"):
        case = build(kind, pairs(0, n, more), batch_size=n)
    elif kind == "rules":
        case = build(kind, verdicts(0, 2 * n, more), batch_size=2 * n)
    else:
        asked = [replace(p, prompt=user(f"{p.prompt[0]['content']} {more}")) for p in pairs(0, n)]
        case = build(kind, asked, prompts_per_step=n, samples_per_prompt=2, minibatch_size=2 * n, microbatch_size=2 * n)
    with address_space(400):
        case.fails("out of memory")


@contextmanager
def small_disk(place: Path, kb: int) -> Iterator[None]:
    """While the block runs, `place` is a disk of so much room."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kb}k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@each_kind
def test_a_disk_without_room_for_checkpoints(build: Build, kind: str) -> None:
    """And once there is room the same round goes on to its end."""
    case = build(kind)
    with small_disk(case.settings.var_dir / "work", 16):
        case.fails("the disk is full")
    ended = case.run()
    assert ended.state == "done", ended.outcome


@each_kind
def test_a_disk_without_room_for_the_model(build: Build, kind: str) -> None:
    case = build(kind)
    place = case.settings.artifact_dir / ("adapters" if case.stage == "update" else "rewards")
    held = place.with_name("held")
    if case.kind == "rules":  # the preference reward model, which the stage finds there
        place.rename(held)
    files = [path for path in held.rglob("*") if path.is_file()]
    with small_disk(place, sum(-(-path.stat().st_size // 4096) * 4 for path in files) + 16):
        if case.kind == "rules":
            shutil.copytree(held, place, dirs_exist_ok=True)
        case.fails("the disk is full")


# --- what does not belong together


@each_kind
def test_a_base_that_the_versions_do_not_stand_on(build: Build, tmp_path: Path, kind: str) -> None:
    """Before anything is trained: the other base has the same shapes, so nothing else would tell."""
    case = build(kind, base_model=make_tiny_base(tmp_path / "other", seed=5))
    with case.database.session() as session:
        make_policy_version(session)
    case.fails("this database was made with base model tiny")
    assert not (case.settings.var_dir / "work").exists()


@pytest.mark.parametrize("kind", ["ppo", "rloo"])
@pytest.mark.parametrize("hidden_size", [64, 32])
def test_a_reward_model_of_another_base(build: Build, tmp_path: Path, kind: str, hidden_size: int) -> None:
    other = make_tiny_base(tmp_path / "other", seed=5, hidden_size=hidden_size)
    build(kind, base_model=other).fails(
        "scores a known text" if hidden_size == 64 else "cannot be put on the base in other"
    )


@pytest.mark.parametrize("kind", ["dpo", "ppo", "rloo"])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("rank", "the adapter of v0 cannot be continued: its r is 4, and this update's 2. Set LORA_RANK of the stage"),
        ("scale", "the adapter of v0 cannot be continued: its lora_alpha is 4, and this update's 8"),
        ("layers", "the adapter of v0 cannot be continued: its layers_to_transform is [1], and this update's None"),
        ("shape", "the adapter of v0 does not fit this base: "),
        ("hash", "hashes to "),
        ("base", "the adapter of v0 was trained on the base 777777777777…"),
    ],
)
def test_an_incumbent_that_cannot_be_continued(
    build: Build, base: Path, tmp_path: Path, kind: str, what: str, reason: str
) -> None:
    settings = {"adapter": "continued"} | ({"lora_rank": 2} if what == "rank" else {})
    case = build(kind, **settings)
    from_base = make_tiny_base(tmp_path / "wide", hidden_size=32) if what == "shape" else base
    adapter = make_tiny_adapter(from_base, tmp_path / "adapter", layers=[1] if what == "layers" else None)
    config = json.loads((adapter / "adapter_config.json").read_text())
    if what != "scale":
        write_json(adapter / "adapter_config.json", config | {"lora_alpha": 8})
    more = {"hash": {"adapter_sha256": "7" * 64}, "base": {"base_sha256": "7" * 64}}.get(what, {})
    case.make_active(adapter, **more)
    case.fails(reason)
