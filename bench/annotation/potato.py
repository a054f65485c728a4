"""Potato as a target: its own server with a pairwise scheme, driven through the routes that its page calls.

It keeps all items in the memory of one process, so one is what it gets. By default it hands all items to whoever comes,
the same ones; with `max_annotations_per_user: -1` each person gets one at a time. Both are measured. A judgment goes to
`/updateinstance`, as when its page saves; a POST to `/annotate` then moves on and brings the next page at once, one
call less than its own script makes. The page's own requests for scripts and styles are left out.
"""

import json
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from bench import tools
from bench.annotation.http import Answer, Connection, Refused
from bench.annotation.load import CLOSED_ANNOTATORS, Target
from bench.annotation.pairs import WANTED, question, reply
from bench.annotation.ports import free_port
from bench.tools import NotDone
from commands import processes
from core.errors import EngineError

SHOWN = re.compile(rb'<input id="instance_id"[^>]*value="([^"]+)"')
CONFIG = {
    "annotation_task_name": "bench", "task_dir": ".", "output_annotation_dir": "judged", "data_files": ["items.jsonl"],
    "output_annotation_format": "jsonl", "item_properties": {"id_key": "id", "text_key": "shown"},
    "list_as_text": {"text_list_prefix_type": "alphabet", "horizontal": True},
    "annotation_schemes": [{
        "annotation_type": "pairwise", "name": "preference", "description": "Which reply is better?",
        "items_key": "shown", "mode": "binary", "allow_tie": True,
    }],
    "require_password": False, "user_config": {"allow_all_users": True, "users": []}, "site_dir": "default",
    "assignment_strategy": "fixed_order", "num_annotators_per_item": WANTED,
}  # fmt: skip


class Potato(Target):
    """One Potato of its own folder and port."""

    def __init__(self, *, one_at_a_time: bool = False) -> None:
        super().__init__()
        self.name = "potato_one_at_a_time" if one_at_a_time else "potato"
        self._config = CONFIG | ({"max_annotations_per_user": -1} if one_at_a_time else {})
        self._folder = Path()
        self._web: processes.Child | None = None
        self._signed_in: set[int] = set()
        self._given: dict[str, set[int]] = defaultdict(set)

    def prepare(self, size: int, limit_s: float) -> dict[str, Any]:
        """Write the items and start; it reads them all before it answers, which is its import."""
        home = tools.environment("potato", tools.POTATO)
        self._folder = Path(tempfile.mkdtemp(prefix="dk-potato-"))
        with (self._folder / "items.jsonl").open("w", encoding="utf-8") as out:
            for number in range(1, size + 1):
                pair = [reply(side, number) for side in "ab"]
                out.write(json.dumps({"id": f"item-{number}", "text": question(number), "shown": pair}) + "\n")
        (self._folder / "config.yaml").write_text(json.dumps(self._config, indent=1))  # JSON is YAML
        port = free_port()
        command = [str(home / "bin" / "potato"), "start", "config.yaml", "-p", str(port), "--host", "127.0.0.1"]
        self._web = processes.Child("Potato", ["env", "-C", str(self._folder), *command], self._folder / "web.log")
        began = time.monotonic()
        self._web.start()
        try:
            processes.wait_ready(self._web, f"http://127.0.0.1:{port}/health", limit_s)
            self.callers = [Connection(port) for _ in range(CLOSED_ANNOTATORS)]
            seconds = time.monotonic() - began
        except EngineError as error:
            raise NotDone(str(error)[-500:]) from error
        return {
            "filled_s": round(seconds, 1), "server": "its own, one process with threads",
            "judgments_wanted_per_task": WANTED, "versions": tools.versions(home, ("potato-annotation", "flask", "werkzeug")),
        }  # fmt: skip

    async def next(self, annotator: int) -> Any:
        """Sign in with the first call; after that, as its button Next."""
        caller = self.callers[annotator]
        if annotator in self._signed_in:
            answer = await caller.post("/annotate", {"action": "next_instance"})
        else:
            await caller.post_form("/auth", {"email": f"bench-{annotator}", "pass": ""})
            self._signed_in.add(annotator)
            answer = await caller.get("/annotate")
        item = _item(answer)
        self._given[item].add(annotator)
        return item

    async def submit(self, annotator: int, task: Any) -> None:
        """A choice, as its page saves it."""
        body = {"instance_id": task, "annotations": {"preference:selection": "A"}, "span_annotations": []}
        answer = (await self.callers[annotator].post("/updateinstance", body)).json()
        if answer.get("status") == "error":
            raise Refused(f"/updateinstance: {answer.get('message')}")

    def check(self) -> dict[str, int]:
        """What its files hold, and how often one item was given to, or judged by, more people than it wanted."""
        judged: Counter[str] = Counter()
        for path in (self._folder / "judged").glob("*/user_state.json"):
            state = json.loads(path.read_text(encoding="utf-8"))
            judged.update(item for item, labels in state["instance_id_to_label_to_value"].items() if labels)
        given = [len(people) for people in self._given.values()]
        return {
            "judgments": judged.total(),
            "tasks_judged_too_often": sum(n > WANTED for n in judged.values()),
            "most_judgments_of_a_task": max(judged.values(), default=0),
            "tasks_given_to_too_many": sum(n > WANTED for n in given),
            "most_people_given_one_task": max(given, default=0),
        }

    def stop(self) -> None:
        """End the server and remove its folder."""
        if self._web:
            self._web.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def _item(answer: Answer) -> str:
    """The id of the item that a page shows.

    Raises:
        Refused: the page shows none, or leads elsewhere.
    """
    found = SHOWN.search(answer.body)
    if answer.status != 200 or found is None:
        raise Refused(f"/annotate: {answer.status} without an item, to {answer.fields.get('location', 'nowhere')}")
    return found[1].decode()
