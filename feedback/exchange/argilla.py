"""Argilla's records: as `records.to_json` and `to_list` write them (2.x), as columns of a dataset, and those of 1.x.

Fields are found by name (`foreign`). Responses become judgments of "ext:argilla/<user id>"; drafts and discarded ones are
left out. Suggestions come from models, so they become simulated judgments of "ext-script:argilla/<agent>".
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import InvalidInput
from feedback.exchange.foreign import Answer, Fields, answered, kind_of
from feedback.exchange.reading import Wanted

Said = tuple[str, bool, list[Answer]]  # who, whether a program, the answers to each question


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether this is a record of Argilla's, nested or in columns."""
    nested = isinstance(row.get("fields"), Mapping) and ("responses" in row or "suggestions" in row)
    return nested or any(name.endswith((".responses", ".suggestion")) for name in row)


def read(row: Mapping[str, Any], wanted: Wanted) -> tuple[dict[str, Any], list[str]]:
    """A record as a row of ours, and what of its responses does not fit.

    Raises:
        InvalidInput: there is no task in it that we know.
    """
    nested = isinstance(row.get("fields"), Mapping)
    fields = Fields.of(row["fields"] if nested else row, wanted.fields)
    acts = list(_nested(row) if nested else _columns(row))
    kind = wanted.kind or kind_of(fields, (a for _, _, answers in acts for a in answers), wanted.rule)
    judgments, problems = [], []
    for who, simulated, answers in acts:
        try:
            values = answered(kind, fields, answers)
        except InvalidInput as error:
            problems.append(f"{'suggestion' if simulated else 'response'} of {who}: {error.message}")
            continue
        judgments.append({"annotator": f"argilla/{who}", "judgment": values, "simulated": simulated})
    # People first: they have the places, and what a program suggested is surplus where none is left.
    judgments.sort(key=lambda judgment: bool(judgment["simulated"]))
    people = {judgment["annotator"] for judgment in judgments if not judgment["simulated"]}
    name = row.get("id") or row.get("external_id")
    task = {
        "kind": kind, "messages": fields.messages, "completions": fields.completions, "judgments": judgments,
        "source": None if name is None else f"argilla:{name}", "required_n": max(1, len(people)),
    }  # fmt: skip
    return task, problems


def _nested(row: Mapping[str, Any]) -> Iterator[Said]:
    responses, by_user = row.get("responses"), defaultdict[str, list[Answer]](list)
    if isinstance(responses, Mapping):  # 2.x: by question
        for question, given in responses.items():
            for response in given or []:
                by_user[str(response.get("user_id") or "unknown")].append(_answer(question, response.get("value")))
    for response in responses if isinstance(responses, list) else []:  # 1.x: by person
        if response.get("status", "submitted") == "submitted":
            for question, value in (response.get("values") or {}).items():
                said = value.get("value") if isinstance(value, Mapping) else value
                by_user[str(response.get("user_id") or "unknown")].append(_answer(question, said))
    yield from ((who, False, answers) for who, answers in by_user.items())
    suggestions, by_agent = row.get("suggestions"), defaultdict[str, list[Answer]](list)
    if isinstance(suggestions, Mapping):
        suggestions = [{"question_name": question, **(said or {})} for question, said in suggestions.items()]
    for said in suggestions or []:
        if said.get("value") is not None:
            question = str(said.get("question_name") or "")
            by_agent[str(said.get("agent") or "unknown")].append(_answer(question, said["value"]))
    yield from ((who, True, answers) for who, answers in by_agent.items())


def _columns(row: Mapping[str, Any]) -> Iterator[Said]:
    by_user, by_agent = defaultdict[str, list[Answer]](list), defaultdict[str, list[Answer]](list)
    for name, values in row.items():
        question = name.removesuffix(".responses")
        if name.endswith(".responses"):
            users = row.get(f"{name}.users") or []
            states = row.get(f"{name}.status") or []
            for n, value in enumerate(values or []):
                if n >= len(states) or states[n] in (None, "submitted"):
                    by_user[str(users[n]) if n < len(users) else "unknown"].append(_answer(question, value))
        elif name.endswith(".suggestion") and values is not None:
            agent = str(row.get(f"{name}.agent") or "unknown")
            by_agent[agent].append(_answer(name.removesuffix(".suggestion"), values))
    yield from ((who, False, answers) for who, answers in by_user.items())
    yield from ((who, True, answers) for who, answers in by_agent.items())


def _answer(question: str, value: Any) -> Answer:
    """An answer, its way of asking told by its shape: Argilla's records do not name the type of a question."""
    if isinstance(value, bool | int):
        return Answer("rating", value, question)
    if isinstance(value, list):
        return Answer("ranking" if len(value) > 1 else "choice", value, question)
    long = isinstance(value, str) and len(value) > 80
    asked_for_text = any(
        word in question.lower() for word in ("comment", "note", "reason", "correct", "edit", "rewrite")
    )
    return Answer("text" if long or asked_for_text else "choice", value, question)
