"""What rows of other programs have in common: fields without fixed names, and answers in words of their own.

`Fields.of` finds the conversation and the completions by the names that fields usually have; `answered` turns what somebody
chose, ranked, rated or wrote into the form of a kind. Guesses stop where two readings are possible: that is reported.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import InvalidInput

CONVERSATION = ("messages", "conversation", "chat", "dialogue", "dialog", "history", "prompt")
QUESTION = ("prompt", "question", "instruction", "query", "input", "user_prompt", "request")
LISTS = ("completions", "responses", "answers", "candidates", "items", "outputs", "generations", "replies")
PAIRS = (("chosen", "rejected"), ("left", "right"))
ONE = ("completion", "response", "answer", "reply", "output", "generation", "text", "chosen")
TEXT_OF = ("text", "body", "content", "html", "response", "completion", "value", "title")
ROLES = {
    "user": "user", "human": "user", "prompter": "user", "customer": "user", "system": "system",
    "assistant": "assistant", "bot": "assistant", "gpt": "assistant", "model": "assistant", "agent": "assistant",
}  # fmt: skip
SIDES = ("left", "right")
FILLERS = "is|are|much|slightly|a bit|far|better|best|wins?|response|answer|reply|option|model|text"
BOTH_BAD = ("both bad", "neither", "none", "both are bad", "both_bad", "all bad", "none is good")
TIE = ("tie", "same", "equal", "both", "both good", "draw", "no preference", "similar", "both are good")
VERDICTS = {
    "broken": "broken", "violation": "broken", "violated": "broken", "unsafe": "broken", "breaks": "broken", "yes": "broken",
    "kept": "kept", "no violation": "kept", "safe": "kept", "follows": "kept", "ok": "kept", "no": "kept",
    "unsure": "unsure", "not sure": "unsure", "unclear": "unsure", "maybe": "unsure",
}  # fmt: skip


@dataclass(frozen=True)
class Fields:
    """What a row shows: the conversation, and the completions with the names that answers may call them by."""

    messages: list[dict[str, str]]
    completions: list[str]
    names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, values: Mapping[str, Any], named: Mapping[str, str] | None = None) -> "Fields":
        """Find them among a row's fields.

        Args:
            values: the fields by name.
            named: which field is which, where the usual names do not say: "prompt", and "a", "b", … of the completions.

        Raises:
            InvalidInput: no conversation or no completions are to be found, or they are of no shape that is known.
        """
        named = named or {}
        by_name = {name.lower(): value for name, value in values.items()}
        completions = _named_completions(by_name, named) or _found_completions(by_name)
        if not completions:
            raise InvalidInput(f"no completions are among the fields {sorted(values)[:8]}; name them with --field a=…")
        names, texts = zip(*completions, strict=True)
        messages = _conversation(by_name, named.get("prompt", "").lower())
        return cls(messages, list(texts), list(names))

    def place(self, word: object) -> int | None:
        """Which completion a word names, if any: by its name, its number from 1, its letter."""
        name = str(word).strip().lower()
        if name in self.names:
            return self.names.index(name)
        words = re.findall(r"[a-z]+|\d+", name)
        last = words[-1] if 1 <= len(words) <= 2 else ""  # longer ones are sentences
        if last.isdecimal() and len(last) < 9 and 1 <= int(last) <= len(self.completions):
            return int(last) - 1
        return ord(last) - ord("a") if len(last) == 1 and ord(last) - ord("a") < len(self.completions) else None


@dataclass(frozen=True)
class Answer:
    """One thing that somebody answered: how it was asked (choice, ranking, rating, text), and the value."""

    how: str
    value: Any
    name: str = ""  # of the control or question


def kind_of(fields: Fields, answers: Iterable[Answer], rule: str | None) -> str:
    """The kind of task that such answers are judgments of."""
    hows = {answer.how for answer in answers}
    if len(fields.completions) > 2:
        return "ranking"
    if len(fields.completions) == 2:
        return "pairwise"
    if rule is not None:
        return "rule_check"
    return "correction" if hows and "rating" not in hows and "text" in hows else "rating"


def answered(kind: str, fields: Fields, answers: Sequence[Answer]) -> dict[str, Any]:
    """The form's values that these answers make.

    Raises:
        InvalidInput: none of them answers what this kind asks.
    """
    notes = [_words(a.value) for a in answers if a.how == "text"]
    if kind == "correction":
        if not notes:
            return _nothing(kind, answers)
        fine = notes[0].strip() == fields.completions[0].strip()  # what was left as it was
        return {"fine": True} if fine else {"corrections": {0: notes[0]}}
    for answer in answers:
        values = _ASKED[kind](fields, answer)
        if values is not None:
            return values | ({"note": "\n".join(filter(None, notes))[:10_000]} if any(notes) else {})
    return _nothing(kind, answers)


def known_answer(kind: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The known answer that a judgment makes, where somebody marked it as the truth."""
    if kind == "pairwise":
        choice = str(values["choice"])
        return {"choice": [{"left": "a", "right": "b"}.get(choice, choice)]}
    if kind == "ranking":
        if values.get("all_wrong"):
            return {"all_wrong": True}
        return {"best": [n for n, rank in enumerate(values["ranks"]) if rank == min(values["ranks"])]}
    if kind in ("rating", "rule_check"):
        name = "rating" if kind == "rating" else "verdict"
        return {name: [values[name]]}
    return None


def plain_messages(value: Any) -> list[dict[str, str]]:
    """A conversation as turns of role and content; a text is one user turn.

    Raises:
        InvalidInput: it is neither.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"the conversation is a {type(value).__name__}; expected a text or a list of turns")
    return [_turn(turn) for turn in value]


def _turn(turn: Any) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise InvalidInput(f"a turn is a {type(turn).__name__}; expected an object")
    who = next((str(turn[name]) for name in ("role", "from", "author", "speaker") if turn.get(name)), "")
    said = next((turn[name] for name in ("content", "value", "text") if isinstance(turn.get(name), str)), None)
    if who.lower() not in ROLES or said is None:
        raise InvalidInput(
            f"a turn of {who or 'nobody'!r} cannot be read; expected a role (user, assistant) and a text"
        )
    return {"role": ROLES[who.lower()], "content": said}


def _conversation(values: Mapping[str, Any], named: str) -> list[dict[str, str]]:
    names = (named,) if named else (*CONVERSATION, *QUESTION)
    found = next((values[name] for name in names if values.get(name)), None)
    if found is None:
        raise InvalidInput(f"no prompt is among the fields {sorted(values)[:8]}; name it with --field prompt=…")
    messages = plain_messages(found)
    while messages and messages[-1]["role"] == "assistant":  # whole conversations end with what is judged
        messages.pop()
    return messages


def _named_completions(values: Mapping[str, Any], named: Mapping[str, str]) -> list[tuple[str, str]]:
    wanted = [named[letter].lower() for letter in "abcdef" if letter in named]
    if len(wanted) == 1 and isinstance(values.get(wanted[0]), list):
        return _listed(wanted[0], values[wanted[0]])
    return [(name, _text(values.get(name), name)) for name in wanted]


def _found_completions(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    for name in LISTS:
        if isinstance(values.get(name), list):
            return _listed(name, values[name])
    for pair in PAIRS:
        if all(values.get(name) for name in pair):
            return [(name, _text(values[name], name)) for name in pair]
    groups = {"": [letter for letter in "abcdef" if _is_text(values.get(letter))]}
    for name in sorted(values):
        if (stem := re.fullmatch(r"(.*?[a-z])[-_ ]?(?:\d+|(?<=[-_ ])[a-f])", name)) and _is_text(values[name]):
            groups.setdefault(stem.group(1), []).append(name)
    numbered = [names for names in groups.values() if len(names) > 1]
    if len(numbered) > 1:
        raise InvalidInput(f"both {numbered[0]} and {numbered[1]} may be the completions; name them with --field a=…")
    if numbered:
        return [(name, _text(values[name], name)) for name in numbered[0]]
    one = next((name for name in ONE if _is_text(values.get(name))), None)
    return [] if one is None else [(one, _text(values[one], one))]


def _listed(name: str, items: list[Any]) -> list[tuple[str, str]]:
    ids = [
        str(item["id"]).lower() if isinstance(item, Mapping) and item.get("id") is not None else "" for item in items
    ]
    return [(ids[n] or f"{name}-{n + 1}", _text(item, name)) for n, item in enumerate(items)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[-1], Mapping))


def _text(value: Any, name: str) -> str:
    """A completion's text: as it is, of an object that has one, or the last turn of a conversation."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        value = next((value[key] for key in TEXT_OF if isinstance(value.get(key), str) and value[key]), None)
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is no text")
    return value


# Answers --------------------------------------------------------------------------------------------------------------


def _nothing(kind: str, answers: Sequence[Answer]) -> dict[str, Any]:
    said = ", ".join(f"{a.name or a.how}: {_words(a.value)[:60]!r}" for a in answers)
    raise InvalidInput(f"the answer ({said or 'nothing'}) is none that a {kind} task knows")


def _pairwise(fields: Fields, answer: Answer) -> dict[str, Any] | None:
    if answer.how == "ranking":
        ranks = _ranks(fields, answer.value)
        if ranks is None:
            return None
        return {"choice": "tie" if ranks[0] == ranks[1] else "left" if ranks[0] < ranks[1] else "right"}
    if answer.how != "choice":
        return None
    word = _words(answer.value).strip().lower()
    alike = "both_bad" if word in BOTH_BAD else "tie" if word in TIE else None
    side = alike or _side(fields, word)
    strength = 3 if re.search(r"\b(?:much|far)\b", word) else 1 if re.search(r"\b(?:slightly|a bit)\b", word) else None
    return None if side is None else {"choice": side} | ({} if alike or strength is None else {"strength": strength})


def _side(fields: Fields, word: str) -> str | None:
    """ "left" or "right", where a word says one of two: by these names, by the completion's own, or as in "B is better"."""
    if (named := re.search(r"\b(?:left|right)\b", word)) is not None:
        return named.group()
    if word in fields.names:
        return SIDES[fields.names.index(word)]
    place = fields.place(re.sub(rf"\b(?:{FILLERS})\b", "", word))
    return None if place is None else SIDES[place]


def _ranking(fields: Fields, answer: Answer) -> dict[str, Any] | None:
    if answer.how != "ranking":
        return None
    ranks = _ranks(fields, answer.value)
    return None if ranks is None else {"ranks": ranks}


def _ranks(fields: Fields, value: Any) -> list[int] | None:
    """The rank of each completion; None where one is missing or unknown."""
    ranks: dict[int, int] = {}
    for n, entry in enumerate(value, 1) if isinstance(value, list) else ():
        word, rank = (entry.get("value"), entry.get("rank")) if isinstance(entry, Mapping) else (entry, n)
        place = fields.place(word)
        if place is None or not isinstance(rank, int):
            return None
        ranks[place] = rank
    return [ranks[n] for n in range(len(fields.completions))] if len(ranks) == len(fields.completions) else None


def _rating(_: Fields, answer: Answer) -> dict[str, Any] | None:
    value = answer.value
    if answer.how == "choice" and (word := _words(value).strip()).isdecimal() and len(word) < 9:
        value = int(word)
    elif answer.how != "rating":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 5:
        raise InvalidInput(f"the rating is {value!r}; expected a whole number from 1 to 5")
    return {"rating": value}


def _rule_check(_: Fields, answer: Answer) -> dict[str, Any] | None:
    verdict = VERDICTS.get(_words(answer.value).strip().lower()) if answer.how == "choice" else None
    return None if verdict is None else {"verdict": verdict}


def _words(value: Any) -> str:
    if isinstance(value, list):
        return _words(value[0]) if len(value) == 1 else ", ".join(map(_words, value))
    return str(value) if isinstance(value, str | int | float) else ""


_ASKED = {"pairwise": _pairwise, "ranking": _ranking, "rating": _rating, "rule_check": _rule_check}
