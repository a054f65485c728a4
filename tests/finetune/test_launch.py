"""Stages that train in two processes over gloo: they end as one process does, and a killed rank leaves nothing behind.

Two real processes are started by `accelerate launch`, each of which trains a tiny base. Configurations for GPUs are read by
accelerate's own loader here, and run nowhere in this repository.
"""

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from sqlalchemy import func, select

from core.db import Database
from core.errors import SettingsError, StageError
from core.settings import PpoSettings, Settings, UpdateSettings
from finetune import launch
from finetune.cycle import Onlooker, StageRecord, cancel_cycle, reopen_cycle, request_cycle, run_cycle
from finetune.dpo import batch_arguments
from finetune.models import Cycle, StageRun
from finetune.runner import in_own_process, in_this_process
from policy.client import EngineClient
from policy.models import PolicyVersion
from reward.models import RewardModel
from tests.finetune.test_reward_stage import judge_pairs, judge_rules
from tests.tiny import make_tiny_base
from training import ranks

SMALL = {
    "snapshot": {"heldout_frac": 0.4},
    "reward": {
        "members": 2, "epochs": 1.0, "rule_epochs": 1.0, "rule_folds": 2, "lora_rank": 2, "lora_top_layers": 1,
        "learning_rate": 5e-3,
    },
    "update": {"epochs": 1.0, "lora_rank": 4, "learning_rate": 5e-3, "batch_size": 8, "save_steps": 2},
}  # fmt: skip
NO_ENGINE = cast(EngineClient, None)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def frozen(base: Path, migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A var folder with judgments and their snapshot; copied, never changed."""
    var = tmp_path_factory.mktemp("frozen")
    shutil.copy(migrated_file, var / "dunnock.db")
    settings = made(var, base)
    database = Database(settings.db_url)
    judge_pairs(database)
    judge_rules(database)
    with database.session() as session:
        request_cycle(session, settings, "manual", stages=("snapshot",), overrides=SMALL)
    ended = run_cycle(database, settings, in_this_process(database, settings, NO_ENGINE))
    assert ended is not None
    assert ended.state == "done", ended.outcome
    with database.session() as session:  # the round goes on with the stages that train
        cycle = session.get_one(Cycle, ended.id)
        cycle.state = "failed"
    database.dispose()
    return var


def made(var: Path, base: Path, **more: Any) -> Settings:
    return Settings(
        _env_file=None, var_dir=var, base_model=str(base), device="cpu", secret_key="tests-only-" + "k" * 32, **more
    )


class Round:
    """A round of its own on a copy of the frozen judgments, with the stages that are asked for."""

    def __init__(self, var: Path, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.var, self.base, self.patch = var, base, patch
        self.database = Database(made(var, base).db_url)

    def ask(self, *stages: str, **update: Any) -> None:
        """Let the failed round go on with these stages, its settings of the update changed."""
        with self.database.session() as session:
            cycle = session.scalars(select(Cycle)).one()
            fixed = dict(cycle.settings)
            fixed["update"] = fixed["update"] | update
            cycle.settings = fixed | {"stages": ["snapshot", *stages]}
            if cycle.state == "failed":
                reopen_cycle(session, cycle.id)

    def run(self, *, launched: str = "") -> Cycle:
        settings = made(self.var, self.base, launch=launched)
        for name in ("VAR_DIR", "BASE_MODEL", "DEVICE", "SECRET_KEY"):
            self.patch.setenv(f"DUNNOCK_{name}", str(getattr(settings, name.lower())))
        self.patch.setenv("OMP_NUM_THREADS", "1")
        run = (
            in_own_process(self.database, settings) if launched else in_this_process(self.database, settings, NO_ENGINE)
        )
        ended = run_cycle(self.database, settings, run)
        assert ended is not None
        return ended

    def weights(self, *folder: str) -> dict[str, torch.Tensor]:
        return load_file(self.var.joinpath("artifacts", *folder, WEIGHTS))

    def record(self, *folder: str) -> dict[str, Any]:
        return json.loads(self.var.joinpath("artifacts", *folder, "run.json").read_text())

    def stage(self, name: str) -> StageRun:
        with self.database.read() as session:
            return session.scalars(select(StageRun).where(StageRun.name == name)).one()

    def has_begun(self, name: str) -> bool:
        """Whether the stage has told of a step."""
        with self.database.read() as session:
            found = session.scalars(select(StageRun).where(StageRun.name == name)).one_or_none()
            return found is not None and found.note.startswith("step ")

    def rows(self, table: Any) -> int:
        """How many rows of a table this round made."""
        with self.database.read() as session:
            return session.scalar(select(func.count(table.id)).where(table.cycle_id == 1)) or 0


@pytest.fixture
def begin(frozen: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Round]]:
    """A function that makes a round."""
    rounds: list[Round] = []

    def begin() -> Round:
        var = tmp_path / f"var-{len(rounds)}"
        shutil.copytree(frozen, var)
        rounds.append(Round(var, base, monkeypatch))
        return rounds[-1]

    yield begin
    for each in rounds:
        each.database.dispose()


def started_here() -> dict[int, bool]:
    """The processes below this one that belong to a launch, by their ids; and whether each is a rank, not the launcher."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if "finetune.runner" in words:
            found[process.pid] = "accelerate.commands.launch" not in words
    return found


def ranks_of_now() -> list[int]:
    """Ids of the ranks, the main one first."""
    return sorted(number for number, is_rank in started_here().items() if is_rank)


def is_alive(number: int) -> bool:
    """Whether a process runs; one that nobody has buried yet does not."""
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys() != set()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# --- two processes end as one


def test_two_processes_end_as_one(begin: Callable[[], Round]) -> None:
    """Reward models of both kinds and an update by DPO, with steps that two processes cannot fill at an epoch's end."""
    alone, both = begin(), begin()
    for each, launched in ((alone, ""), (both, "cpu")):
        each.ask("reward", "update")
        ended = each.run(launched=launched)
        assert ended.state == "done", ended.outcome
    n_pairs = both.record("adapters", "v1")["n_pairs"]
    assert n_pairs % 8 in range(1, 8)

    folders = [("rewards", "cycle-1", f"member-{k}") for k in range(2)] + [
        ("rewards", "cycle-1-rules", "rules"),
        ("adapters", "v1"),
    ]
    for folder in folders:
        assert apart(alone.weights(*folder), both.weights(*folder)) < 1e-4, folder
    for folder in (("rewards", "cycle-1"), ("rewards", "cycle-1-rules"), ("adapters", "v1")):
        one, two = alone.record(*folder), both.record(*folder)
        assert (one["processes"], two["processes"]) == (1, 2)
        assert one["steps"] == two["steps"]
        assert [row["loss"] for row in two["log"]] == pytest.approx([row["loss"] for row in one["log"]], rel=1e-4)
    moved = [value.abs().max() for name, value in both.weights("adapters", "v1").items() if "lora_B" in name]
    assert min(moved) > 1e-3  # both learnt, so that being alike says something
    assert both.stage("update").attempts == 1
    assert (both.rows(PolicyVersion), both.rows(RewardModel)) == (1, 2)
    assert not (both.var / "work" / "cycle-1" / "update").exists()
    assert not started_here()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_completions_are_sampled_and_learnt_from_by_two_processes(begin: Callable[[], Round], method: str) -> None:
    """What each samples hangs on its own random numbers, so the weights are not those of one process."""
    both = begin()
    both.ask("reward", "update", method=method)
    small = PpoSettings(
        steps=2, prompts_per_step=2, samples_per_prompt=4, max_completion_tokens=4, epochs=1, minibatch_size=8,
        microbatch_size=4, lora_rank=2, learning_rate=1e-2, require_bar=False,
    )  # fmt: skip
    with both.database.session() as session:
        cycle = session.scalars(select(Cycle)).one()
        cycle.settings = cycle.settings | {"ppo": small.model_dump()}
    ended = both.run(launched="cpu")
    assert ended.state == "done", ended.outcome
    record = both.record("adapters", "v1")
    assert (record["method"], record["processes"], record["steps"], len(record["log"])) == (method, 2, 2, 2)
    assert max(value.abs().max() for name, value in both.weights("adapters", "v1").items() if "lora_B" in name) > 0


# --- killed, cancelled, failed


def when(ready: Callable[[], bool], act: Callable[[], None], times: int = 1) -> threading.Thread:
    """A thread that acts each time that something is ready, so many times."""

    def watch() -> None:
        for _ in range(times):
            began = time.monotonic()
            while not ready():
                if time.monotonic() - began > 150:
                    return
                time.sleep(0.05)
            act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


LONG = {"epochs": 4.0, "save_steps": 3}


def test_a_killed_rank_is_started_again_and_ends_as_an_unbroken_run(begin: Callable[[], Round]) -> None:
    whole, broken = begin(), begin()
    whole.ask("update", **LONG)
    broken.ask("update", **LONG)
    assert whole.run().state == "done"
    work, killed = broken.var / "work" / "cycle-1" / "update", []

    def kill() -> None:
        killed.append(ranks_of_now()[-1])
        os.kill(killed[-1], signal.SIGKILL)

    watch = when(lambda: bool(list(work.glob("checkpoint-*/trainer_state.json"))) and len(ranks_of_now()) == 2, kill)
    ended = broken.run(launched="cpu")
    watch.join()
    assert len(killed) == 1
    assert ended.state == "done", ended.outcome
    assert broken.stage("update").attempts == 2
    assert apart(whole.weights("adapters", "v1"), broken.weights("adapters", "v1")) < 1e-4
    log = broken.record("adapters", "v1")["log"]
    assert [row["step"] for row in log] == list(range(1, len(log) + 1))
    assert not started_here()


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", ["a rank", "the launcher"])
def test_a_stage_that_is_killed_again_fails_and_registers_nothing(begin: Callable[[], Round], ended_by: str) -> None:
    """One rank ends the others; and as where the worker is killed, the system ends the launcher and the ranks with it.

    The second time they have only just been started, and have not told the system yet to end them with their parent.
    """
    broken = begin()
    broken.ask("update", **{**LONG, "epochs": 200.0})
    seen: list[int] = []

    def ready() -> bool:
        here = ranks_of_now()
        return len(here) == 2 and not set(here) & set(seen) and (bool(seen) or broken.has_begun("update"))

    def kill() -> None:
        seen.extend(ranks_of_now())
        launcher = next(number for number, is_rank in started_here().items() if not is_rank)
        os.kill(seen[-2] if ended_by == "a rank" else launcher, signal.SIGKILL)

    watch = when(ready, kill, times=2)
    ended = broken.run(launched="cpu")
    watch.join()
    assert len(seen) == 4
    assert ended.state == "failed"
    reason = "one of its processes was ended" if ended_by == "a rank" else "its process was ended by SIGKILL"
    assert f"update: {reason}; the system may have run out of memory. Log: " in (ended.outcome or "")
    stage = broken.stage("update")
    assert (stage.state, stage.error) == ("failed", f"killed: {reason}")
    assert stage.attempts <= 2  # being marked failed is none
    assert broken.rows(PolicyVersion) == 0
    assert not (broken.var / "artifacts" / "adapters" / "v1").exists()
    until = time.monotonic() + 60
    while any(is_alive(number) for number in seen) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(is_alive(number) for number in seen)
    assert not started_here()


@pytest.mark.slow
def test_a_cancelled_launch_ends_all_its_processes(begin: Callable[[], Round]) -> None:
    cancelled = begin()
    cancelled.ask("update", **{**LONG, "epochs": 200.0})

    def cancel() -> None:
        with cancelled.database.session() as session:
            cancel_cycle(session, 1, "ana")

    watch = when(lambda: len(ranks_of_now()) == 2, cancel)
    ended = cancelled.run(launched="cpu")
    watch.join()
    assert ended.state == "cancelled"
    assert not started_here()
    assert cancelled.rows(PolicyVersion) == 0


def test_what_stops_the_ranks_is_the_reason_that_is_told(begin: Callable[[], Round]) -> None:
    """It is theirs and not that a process of a launch has ended, and it is not tried again."""
    odd = begin()
    odd.ask("update", batch_size=7)
    ended = odd.run(launched="cpu")
    assert ended.state == "failed"
    reason = "update: StageError: steps of 7 in microbatches of 7 cannot be shared out among 2 processes"
    assert reason in (ended.outcome or "")
    assert odd.stage("update").attempts == 1
    assert odd.rows(PolicyVersion) == 0
    assert not started_here()


# --- configurations and words


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cpu", DistributedType.MULTI_GPU),
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp", DistributedType.FSDP),
        ("deepspeed", DistributedType.DEEPSPEED),
    ],
)
def test_accelerate_reads_the_configurations_that_ship(name: str, kind: DistributedType) -> None:
    """Its loader refuses fields that it does not know, and its launcher takes what they hold as its own options."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = launch.configuration(name)
    assert load_config_from_file(str(path)).distributed_type == kind
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "-m", "x"]))
    assert (args.num_processes, args.num_machines) == (2, 1)
    assert (args.use_fsdp, args.use_deepspeed) == (name == "fsdp", name == "deepspeed")
    assert args.use_cpu == (name == "cpu")
    if name == "fsdp":
        assert (args.fsdp_version, args.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    if name == "deepspeed":
        assert (args.zero_stage, args.zero3_init_flag) == (2, False)


def test_every_configuration_is_tested() -> None:
    assert {path.stem for path in launch.FOLDER.glob("*.yaml")} == {"cpu", "ddp", "fsdp", "deepspeed"}


def test_only_stages_that_train_are_launched(settings: Settings, tmp_path: Path) -> None:
    call = ["-m", "finetune.runner", "1", "update"]
    assert launch.command(settings, "update", call)[1:] == call
    many = settings.model_copy(update={"launch": "ddp", "launch_processes": 4})
    command = launch.command(many, "update", call)
    assert command[-6:] == [*call, "--launched-by", str(os.getpid())]
    at = command.index("--num_processes")
    assert command[at + 1] == "4"
    assert launch.command(many, "gate", call)[1:] == call
    own = tmp_path / "own.yaml"
    own.write_text("num_processes: 2\n")
    assert str(own) in launch.command(settings.model_copy(update={"launch": str(own)}), "reward", call)
    with pytest.raises(SettingsError, match="neither a file nor one of cpu, ddp, deepspeed, fsdp"):
        launch.command(settings.model_copy(update={"launch": "gpus"}), "update", call)


def test_ppo_on_several_ranks_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.ppo.update import update_policy

    monkeypatch.setattr(ranks, "_place", ranks._Place(0, 2))
    with pytest.raises(StageError, match="PPO trains in one process, and DUNNOCK_LAUNCH started 2; leave it empty"):
        update_policy([], lambda rows: [], base, tmp_path, tmp_path, PpoSettings())
    with pytest.raises(SettingsError, match="METHOD=ppo trains in one process; leave DUNNOCK_LAUNCH empty"):
        Settings(_env_file=None, launch="ddp", update=UpdateSettings(method="ppo"))


@pytest.mark.parametrize(
    ("n", "batch", "micro", "expected"),
    [(1, 8, 0, (8, 1)), (1, 8, 2, (2, 4)), (2, 8, 0, (4, 1)), (2, 8, 8, (4, 1)), (2, 8, 2, (2, 2)), (4, 8, 1, (1, 2)),
     (2, 7, 0, None), (4, 2, 0, None), (3, 8, 2, None)],
)  # fmt: skip
def test_steps_are_shared_out_evenly_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, n: int, batch: int, micro: int, expected: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(ranks, "_place", ranks._Place(0, n))
    if expected is None:
        with pytest.raises(StageError, match=f"cannot be shared out among {n} processes"):
            batch_arguments(batch, micro)
    else:
        assert tuple(batch_arguments(batch, micro).values()) == expected


def test_only_the_main_rank_tells_but_the_first_failure_is_anybodys(database: Database, settings: Settings) -> None:
    """Else the main one's, that another has closed its connection, would be the reason."""
    with database.session() as session:
        cycle_id = request_cycle(session, settings, "manual", stages=("update",)).id
    main, other = StageRecord(database, cycle_id, "update"), Onlooker(database, cycle_id, "update")

    def row() -> tuple[str, float, int, str | None]:
        with database.read() as session:
            found = session.scalars(select(StageRun)).one()
            return found.state, found.progress, found.attempts, found.error

    other.progress(0.5, "half")
    with database.session() as session:
        other.done(session, {"made": 1}, 1.0)
    assert row() == ("running", 0.0, 1, None)
    other.failed("StageError: out of memory")
    main.failed("RuntimeError: Connection closed by peer")
    assert row() == ("failed", 0.0, 1, "StageError: out of memory")


@pytest.mark.parametrize(
    ("error", "several", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"), True, True),
        (RuntimeError("NCCL communicator was aborted"), True, True),
        (RuntimeError("Connection reset by peer"), False, False),
        (RuntimeError("shapes differ"), True, False),
        (StageError("gloo"), True, False),
        (OSError("Connection reset by peer"), True, False),
    ],
)
def test_what_says_only_that_another_rank_is_gone(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, several: bool, expected: bool
) -> None:
    monkeypatch.setattr(ranks, "_place", ranks._Place(0, 2 if several else 1))
    assert ranks.lost_another(error) is expected


def test_shares_are_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(range(7))
    for n in (1, 2, 3, 9):
        shares = []
        for number in range(n):
            monkeypatch.setattr(ranks, "_place", ranks._Place(number, n))
            shares.append(ranks.share(rows))
        assert sorted(itertools.chain(*shares)) == rows
