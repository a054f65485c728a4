"""Label Studio's JSON: exports that come in, and tasks with annotations that its import takes.

An export holds no labelling configuration, so fields are found by name (`foreign`). Annotations of the controls Pairwise,
Choices, Ranker, Rating and TextArea become judgments of "ext:label-studio/<who>"; cancelled ones are skips and are left out,
and one that is marked as ground truth becomes the task's known answer.
Out: `config_of` is the labelling configuration that rows of a kind are for.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.errors import InvalidInput
from feedback.exchange.foreign import Answer, Fields, answered, kind_of, known_answer
from feedback.exchange.reading import Wanted
from feedback.exchange.rows import TaskRow
from feedback.models import KINDS

HOW = {
    "pairwise": "choice",
    "choices": "choice",
    "ranker": "ranking",
    "rating": "rating",
    "textarea": "text",
    "number": "rating",
}


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether this is a task as Label Studio exports it."""
    return isinstance(row.get("data"), Mapping) and ("annotations" in row or "predictions" in row or "id" in row)


def read(row: Mapping[str, Any], wanted: Wanted) -> tuple[dict[str, Any], list[str]]:
    """A task as a row of ours, and what of its annotations does not fit.

    Raises:
        InvalidInput: there is no task in it that we know.
    """
    fields = Fields.of(row["data"], wanted.fields)
    annotations = [a for a in row.get("annotations") or [] if isinstance(a, Mapping) and not a.get("was_cancelled")]
    answers = [list(_answers(annotation)) for annotation in annotations]
    data = row["data"]  # which tells rule and kind of tasks that were once ours
    rule = wanted.rule or (data["rule"] if isinstance(data.get("rule"), str) else None)
    kind = (
        wanted.kind
        or (data["kind"] if data.get("kind") in KINDS else None)
        or kind_of(fields, (a for some in answers for a in some), rule)
    )
    judgments, problems, gold = [], [], None
    for n, (annotation, said) in enumerate(zip(annotations, answers, strict=True), 1):
        try:
            values = answered(kind, fields, said)
        except InvalidInput as error:
            problems.append(f"annotation {n}: {error.message}")
            continue
        gold = gold or (known_answer(kind, values) if annotation.get("ground_truth") else None)
        judgments.append(
            {
                "annotator": f"label-studio/{_who(annotation)}", "judgment": values,
                "latency_s": annotation.get("lead_time"), "created_at": annotation.get("created_at"),
            }
        )  # fmt: skip
    task = {
        "kind": kind, "messages": fields.messages, "completions": fields.completions, "judgments": judgments, "gold": gold,
        "rule": rule if kind == "rule_check" else None,
        "source": None if row.get("id") is None else f"label-studio:{row.get('project', '')}:{row['id']}",
        "required_n": max(1, len({judgment["annotator"] for judgment in judgments})),
    }  # fmt: skip
    return task, problems


def _answers(annotation: Mapping[str, Any]) -> Iterator[Answer]:
    for result in annotation.get("result") or []:
        if not isinstance(result, Mapping) or not isinstance(result.get("value"), Mapping):
            continue
        kind, value = str(result.get("type", "")), result["value"]
        if kind in HOW:
            said = value.get("selected" if kind == "pairwise" else "text" if kind == "textarea" else kind)
            yield Answer(HOW[kind], _best_bucket(said) if kind == "ranker" else said, str(result.get("from_name", "")))


def _best_bucket(said: Any) -> Any:
    """The order of a Ranker, which stands under its own name or, with buckets, bucket after bucket."""
    if isinstance(said, Mapping):
        return [entry for name, bucket in said.items() if name != "_" and isinstance(bucket, list) for entry in bucket]
    return said


def _who(annotation: Mapping[str, Any]) -> str:
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id")
    return str(who) if who not in (None, "") else "unknown"


# Out ------------------------------------------------------------------------------------------------------------------

CONTROLS = {
    "pairwise": '<Pairwise name="answer" toName="completion1,completion2"/>',
    "ranking": '<Ranker name="answer" toName="completions"/>',
    "rating": '<Rating name="answer" toName="completion" maxRating="5"/>',
    "rule_check": (
        '<Choices name="answer" toName="completion" choice="single">'
        '<Choice value="broken"/><Choice value="kept"/><Choice value="unsure"/></Choices>'
    ),
    "correction": '<TextArea name="answer" toName="completion" maxSubmissions="1"/>',
}


def config_of(kind: str) -> str:
    """The labelling configuration of a Label Studio project that takes rows of this kind.

    Raises:
        InvalidInput: Label Studio has no control that asks this.
    """
    if kind not in CONTROLS:
        raise InvalidInput(f"a {kind} task has no counterpart in Label Studio", param="kind")
    objects = {
        "pairwise": '<Text name="completion1" value="$completion1"/><Text name="completion2" value="$completion2"/>',
        "ranking": '<List name="completions" value="$items"/>',
    }.get(kind, '<Text name="completion" value="$completion"/>')
    return (
        '<View><Paragraphs name="prompt" value="$messages" nameKey="role" textKey="content" layout="dialogue"/>'
        f'{objects}{CONTROLS[kind]}<TextArea name="note" toName="prompt" maxSubmissions="1"/></View>'
    )


def write(rows: Iterable[TaskRow]) -> Iterator[dict[str, Any]]:
    """Tasks with annotations, as Label Studio imports them. Probes and what it has no control for are left out.

    Its import takes annotators it knows only, so their names stand in `data.annotators`, in the order of the annotations.
    """
    for row in rows:
        if row.kind not in CONTROLS:
            continue
        said = [(judgment, result) for judgment in row.judgments if (result := _result(row, judgment.judgment))]
        data: dict[str, Any] = {
            "messages": [turn.model_dump() for turn in row.messages], "kind": row.kind, "source": row.source,
            "annotators": [judgment.annotator for judgment, _ in said], "simulated": any(j.simulated for j, _ in said),
        } | ({"rule": row.rule} if row.rule else {})  # fmt: skip
        if row.kind == "pairwise":
            data |= {f"completion{n}": text for n, text in enumerate(row.completions, 1)}
        elif row.kind == "ranking":
            data["items"] = [{"id": f"item-{n}", "title": f"{n}", "body": t} for n, t in enumerate(row.completions, 1)]
        else:
            data["completion"] = row.completions[0]
        annotations = [
            {
                "result": result, "was_cancelled": False, "ground_truth": False, "lead_time": judgment.latency_s,
                "created_at": judgment.created_at.isoformat() if judgment.created_at else None,
            }
            for judgment, result in said
        ]  # fmt: skip
        yield {"data": data, "annotations": annotations, "predictions": []}


def _result(row: TaskRow, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a judgment says, in Label Studio's controls; nothing where these cannot say it."""
    said = _said(row, values)
    if said is None:
        return []
    kind, value, to_name = said
    found = [{"id": "answer", "from_name": "answer", "to_name": to_name, "type": kind, "value": value}]
    if values.get("note"):
        note = {"text": [values["note"]]}
        found.append({"id": "note", "from_name": "note", "to_name": "prompt", "type": "textarea", "value": note})
    return found


def _said(row: TaskRow, values: Mapping[str, Any]) -> tuple[str, dict[str, Any], str] | None:
    if row.kind == "pairwise":  # Pairwise knows two sides and nothing between them
        chosen = values["choice"] in ("left", "right")
        return ("pairwise", {"selected": values["choice"]}, "completion1") if chosen else None
    if row.kind == "ranking":
        if not values.get("ranks"):
            return None
        order = sorted(range(len(row.completions)), key=values["ranks"].__getitem__)
        return "ranker", {"ranker": {"answer": [f"item-{n + 1}" for n in order]}}, "completions"
    if row.kind == "rating":
        return "rating", {"rating": values["rating"]}, "completion"
    if row.kind == "rule_check":
        return "choices", {"choices": [values["verdict"]]}, "completion"
    text = (values.get("corrections") or {}).get("0") or (values.get("corrections") or {}).get(0)
    return ("textarea", {"text": [text or row.completions[0]]}, "completion")
