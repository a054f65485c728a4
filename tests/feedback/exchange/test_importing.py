"""Imports of preference pairs: all forms of rows and files, rows that do not fit, repetition, the way out and back."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from core.db import Database
from core.errors import ImportRowError, InvalidInput
from feedback.exchange import columns, importing
from feedback.exchange.exporting import export_file
from feedback.exchange.importing import import_file, parse_hh, read_pair
from feedback.models import Completion, ImportedPair, Prompt
from feedback.preferences import Preference, gather
from tests.factories import make_prompt


def hh(*turns: str) -> str:
    """An HH-RLHF text; Human begins."""
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


HH = {
    "chosen": hh("Can I eat ivy?", "Which part?", "The berries.", "No, they are toxic."),
    "rejected": hh("Can I eat ivy?", "Which part?", "The berries.", "Sure."),
}
TALK = [user("Can I eat ivy?"), assistant("Which part?"), user("The berries.")]
ROWS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "hh-rlhf": (HH, TALK),
    "plain": ({"prompt": "Can I eat ivy?", "chosen": "No, they are toxic.", "rejected": "Sure."}, TALK[:1]),
    "conversational": (
        {"prompt": TALK, "chosen": [assistant("No, they are toxic.")], "rejected": [assistant("Sure.")]},
        TALK,
    ),
    "conversational, plain sides": ({"prompt": TALK, "chosen": "No, they are toxic.", "rejected": "Sure."}, TALK),
    "implicit prompt": (
        {"chosen": [*TALK, assistant("No, they are toxic.")], "rejected": [*TALK, assistant("Sure.")]},
        TALK,
    ),
    "system turn and other fields": (
        {
            "prompt": [{"role": "system", "content": "Be brief.", "name": "x"}, TALK[0]],
            "chosen": [assistant("No, they are toxic.") | {"weight": 1}],
            "rejected": "Sure.",
            "score_chosen": 9,
        },
        [{"role": "system", "content": "Be brief."}, TALK[0]],
    ),
}


@pytest.mark.parametrize("form", ROWS)
def test_each_form_is_read(form: str) -> None:
    row, prompt = ROWS[form]
    name, pair = read_pair(row, 1)
    assert name == ("hh-rlhf" if form == "hh-rlhf" else "preference")
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "No, they are toxic.", "Sure.")
    assert (pair.margin, pair.simulated) == (None, False)


def test_margin_and_simulated_are_read() -> None:
    _, pair = read_pair(ROWS["plain"][0] | {"margin": 2, "simulated": True}, 1)
    assert (pair.margin, pair.simulated) == (2, True)


PLAIN = ROWS["plain"][0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1, 2], "is a list"),
        ("text", "is a str"),
        (None, "is a NoneType"),
        ({}, "lacks chosen and rejected"),
        ({"prompt": "p", "chosen": "c"}, "lacks rejected"),
        (PLAIN | {"chosen": "  "}, "chosen completion is empty"),
        (PLAIN | {"chosen": "\0"}, "chosen completion is empty"),
        (PLAIN | {"rejected": "x" * 100_001}, "100001 characters"),
        (PLAIN | {"rejected": " No, they are toxic.\n"}, "same text"),
        (PLAIN | {"rejected": "No, they are toxic.\0"}, "same text"),
        (PLAIN | {"prompt": ""}, "user turn"),
        (PLAIN | {"prompt": []}, "user turn"),
        (PLAIN | {"prompt": [user("a"), assistant("b")]}, "user turn"),
        (PLAIN | {"prompt": [{"role": "robot", "content": "x"}]}, "role"),
        (PLAIN | {"prompt": [{"role": "user", "content": None}]}, "content"),
        (PLAIN | {"prompt": 7}, "list of messages"),
        (PLAIN | {"chosen": 7}, "list of messages"),
        (PLAIN | {"chosen": [user("not the assistant")]}, "one assistant turn"),
        (PLAIN | {"chosen": [assistant("one"), assistant("two")]}, "one assistant turn"),
        (PLAIN | {"margin": "much"}, "margin"),
        (PLAIN | {"margin": True}, "margin"),
        (PLAIN | {"margin": float("nan")}, "margin"),
        (PLAIN | {"margin": float("inf")}, "margin"),
        ({"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]}, "differ before the last"),
        ({"chosen": "plain text", "rejected": "without a prompt"}, "not in HH-RLHF form"),
        ({"chosen": HH["chosen"], "rejected": [assistant("x")]}, "rejected is a list"),
        ({"chosen": HH["chosen"], "rejected": hh("Another question?", "Sure.")}, "differ before the last"),
        ({"chosen": hh("Hello?", "Yes?", "Bye."), "rejected": hh("Hello?", "Yes?", "Hm.")}, "end with Assistant"),
        ({"chosen": "\n\nAssistant: a\n\nHuman: b", "rejected": "\n\nAssistant: a\n\nHuman: c"}, "begin with Human"),
        ({"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "x"}, "same speaker"),
        ({"chosen": hh("", "x"), "rejected": hh("", "y")}, "a turn is empty"),
        ({"chosen": hh("Hi", ""), "rejected": hh("Hi", "y")}, "chosen completion is empty"),
        ({"chosen": "Note: x" + hh("Hi", "a"), "rejected": "Note: x" + hh("Hi", "b")}, "not in HH-RLHF form"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_line(row: Any, reason: str) -> None:
    with pytest.raises(ImportRowError, match=reason) as caught:
        read_pair(row, 17)
    assert caught.value.line == 17
    assert str(caught.value).startswith("line 17: ")


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Yo\n", ["Hi", "Yo"]),
        ("\n\nHuman:  Is it Human: or not?\n\nAssistant: a\n\nb", ["Is it Human: or not?", "a\n\nb"]),
        ("\n\nHuman: a\0user\0b\n\nAssistant: c", ["auserb", "c"]),  # our own mark, sent from outside
    ],
)
def test_turns_of_hh_rlhf(text: str, turns: list[str]) -> None:
    _, pair = read_pair({"chosen": text, "rejected": f"{text} and more"}, 1)
    assert [*(turn["content"] for turn in pair.prompt), pair.chosen] == turns


def test_parse_hh_speaks_of_the_line_it_was_given() -> None:
    with pytest.raises(ImportRowError, match="line 5"):
        parse_hh("nothing", 5)


@pytest.mark.parametrize("form", ["plain", "hh-rlhf", "conversational"])
def test_nul_and_odd_unicode(form: str) -> None:
    """NUL goes, half a surrogate becomes a question mark, everything else stays; the hash can be taken."""
    nasty, clean = "z\0é\u200b\u2028\ud800 🐦 ﷽ e\u0301", "zé\u200b\u2028? 🐦 ﷽ e\u0301"
    row: dict[str, Any] = {
        "plain": {"prompt": nasty, "chosen": nasty, "rejected": "b"},
        "hh-rlhf": {"chosen": hh(nasty, nasty), "rejected": hh(nasty, "b")},
        "conversational": {"prompt": [user(nasty)], "chosen": [assistant(nasty)], "rejected": [assistant("b")]},
    }[form]
    _, pair = read_pair(row, 1)
    assert (pair.prompt, pair.chosen) == ([user(clean)], clean)
    assert len(pair.sha256) == 64


# --- files


def write(path: Path, rows: list[Any]) -> Path:
    """Rows as the ending of `path` says."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.name.endswith(".json.gz"):
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


def preferences(db: Database, *, simulated: bool = True) -> list[Preference]:
    with db.read() as session:
        return gather(session, include_simulated=simulated, max_imported_pairs=10**6).preferences


def content(db: Database) -> set[tuple[str, str, str, float, bool]]:
    return {(json.dumps(p.prompt), p.chosen, p.rejected, p.margin, p.simulated) for p in preferences(db)}


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json", "p.json.gz", "p.parquet"])
@pytest.mark.parametrize("form", ["hh-rlhf", "plain", "conversational"])
def test_files_of_each_ending(database: Database, tmp_path: Path, name: str, form: str) -> None:
    row, prompt = ROWS[form]
    report = import_file(database, write(tmp_path / name, [row]))
    assert (report.imported, report.already_there, report.errors) == (1, 0, [])
    (pair,) = preferences(database)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "No, they are toxic.", "Sure.")


@pytest.mark.parametrize("kind", ["database", "postgres_database"])
def test_bad_rows_are_reported_and_the_rest_is_imported_once(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    db: Database = request.getfixturevalue(kind)
    path = tmp_path / "mixed.jsonl"
    rows = [json.dumps(row) for row, _ in ROWS.values()]
    odd = '{"prompt": "odd \\u0000\\ud800", "chosen": "\\u0000fine", "rejected": "\\udfff"}'
    hh_odd = json.dumps({"chosen": hh("odd \0\ud800", "yes \0\ud800"), "rejected": hh("odd \0\ud800", "no")})
    lines = [rows[0], "{not json", "", rows[1], '{"chosen": "x"}', odd, *rows[2:], hh_odd, rows[0], "[]"]
    path.write_text("\n".join(lines), encoding="utf-8")
    distinct = 5  # the implicit prompt, both conversational ones and the HH-RLHF one are the same pair

    report = import_file(db, path)

    assert [line for line, _ in report.errors] == [2, 5, 13]
    assert "is not JSON" in report.errors[0][1]
    assert "lacks rejected" in report.errors[1][1]
    assert report.imported == distinct
    assert report.already_there == 4
    assert report.forms == {"hh-rlhf": 2, "preference": 3}
    again = import_file(db, path)
    assert (again.imported, again.already_there) == (0, distinct + 4)
    with db.read() as session:
        assert session.scalar(select(func.count(ImportedPair.id))) == distinct
        assert session.scalar(select(func.count(Completion.id))) == 2 * distinct
        assert set(session.scalars(select(Prompt.source))) == {"import"}
        assert {p.source.split("@")[0] for p in session.scalars(select(ImportedPair))} == {"mixed.jsonl"}


def test_a_limit_takes_the_first_rows(database: Database, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [PLAIN | {"prompt": f"Question {n}?"} for n in range(5)])
    assert import_file(database, path, limit=2).imported == 2
    assert [p.prompt[0]["content"] for p in preferences(database)] == ["Question 0?", "Question 1?"]


def test_a_known_prompt_keeps_what_is_known_of_it(database: Database, tmp_path: Path) -> None:
    with database.session() as session:
        prompt_id = make_prompt(session, "Can I eat ivy?", category="dangerous_advice", harmful=True).id
    import_file(database, write(tmp_path / "p.jsonl", [PLAIN]))
    (pair,) = preferences(database)
    assert (pair.category, pair.harmful) == ("dangerous_advice", True)
    with database.read() as session:
        assert session.scalars(select(ImportedPair.prompt_id)).one() == prompt_id


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl.gz", b"this is no gzip"),
        ("p.jsonl.gz", gzip.compress(json.dumps(PLAIN).encode() * 50)[:-20]),
        ("p.jsonl.gz", gzip.compress(b"{}\n" * 999)[:10] + b"\xff" * 40),
        ("p.json", b'[{"chosen": '),
        ("p.json", b"7"),
        ("p.json", b'{"chosen": "an object", "rejected": "and no array"}'),
        ("p.parquet", b"PAR1 but damaged PAR1"),
    ],
    ids=["no gzip", "cut gzip", "damaged gzip", "cut json", "a number", "an object", "damaged parquet"],
)
def test_a_file_that_cannot_be_read_is_an_error_in_words(
    database: Database, tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=name):
        import_file(database, path)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_line_that_is_no_utf8_is_reported_and_never_stored_spoilt(
    database: Database, tmp_path: Path, ending: str
) -> None:
    good = json.dumps(PLAIN).encode()
    bad = json.dumps({**PLAIN, "prompt": "Frißt sie Käse?"}, ensure_ascii=False).encode("latin-1")
    path, content = tmp_path / f"p.jsonl{ending}", good + b"\n" + bad + b"\n"
    path.write_bytes(gzip.compress(content) if ending else content)
    report = import_file(database, path)
    assert report.imported == 1
    ((line, reason),) = report.errors
    assert (line, "UTF-8" in reason, "0xdf" in reason) == (2, True, True)
    with database.read() as session:
        assert "\ufffd" not in json.dumps([p.messages for p in session.scalars(select(Prompt))], ensure_ascii=False)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(database: Database, tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf" + json.dumps([PLAIN] if name == "p.json" else PLAIN).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    report = import_file(database, tmp_path / name)
    assert (report.imported, report.errors) == (1, [])


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[" * 200_000, "nested too deep"), (b'[\n{"prompt": "\xe4"}]', "line 2"), (b"[" + b" " * 999 + b"]", "jsonl")],
    ids=["deep", "latin-1", "large"],
)
def test_a_json_file_that_cannot_be_read_is_an_error_in_words(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    if words == "jsonl":
        monkeypatch.setattr(importing, "MAX_JSON_BYTES", 900)
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=words):
        import_file(database, tmp_path / "p.json")


def test_a_line_that_goes_on_and_on_is_reported_and_takes_no_memory(database: Database, tmp_path: Path) -> None:
    good, other = json.dumps(PLAIN).encode(), json.dumps({**PLAIN, "prompt": "May I eat moss?"}).encode()
    path = tmp_path / "p.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(good + b"\n")
        for _ in range(300):
            file.write(b"a" * (1 << 20))
        file.write(b"\n" + b" " * importing.MAX_LINE_BYTES + b"\n" + other + b"\n")
    tracemalloc.start()
    report = import_file(database, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.imported == 2
    assert [(line, "longer than the 16 MiB" in why) for line, why in report.errors] == [(2, True), (3, True)]
    assert peak < 100 << 20


def test_a_file_that_unpacks_to_more_than_is_taken_is_given_up(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "MAX_LINE_BYTES", 1 << 16)
    monkeypatch.setattr(importing, "MAX_FILE_BYTES", 1 << 20)
    for name, content in (("one.jsonl.gz", b"0" * (50 << 20)), ("many.jsonl.gz", b"\n" * (2 << 20))):
        (tmp_path / name).write_bytes(gzip.compress(content))
        with pytest.raises(InvalidInput, match="more than 1 MiB"):
            import_file(database, tmp_path / name)


def write_repeated(path: Path, long: str, n: int) -> Path:
    """A .parquet of `n` rows whose chosen text is stored once, with one row before that is short."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chosen = pa.DictionaryArray.from_arrays([0, *[1] * n], ["Yes.", long])
    rows = {"prompt": [f"Question {i}?" for i in range(n + 1)], "chosen": chosen, "rejected": ["No."] * (n + 1)}
    pq.write_table(pa.table(rows), path, compression="zstd", dictionary_pagesize_limit=1 << 28, store_schema=False)
    return path


def test_a_parquet_row_that_is_too_long_is_reported_and_takes_no_memory(database: Database, tmp_path: Path) -> None:
    """A value that is stored once is not repeated in memory for each of its rows."""
    import pyarrow as pa

    long = "a" * (importing.MAX_LINE_BYTES + 1)
    path = write_repeated(tmp_path / "p.parquet", long, 60)  # a gigabyte
    assert path.stat().st_size < 1 << 20
    whole = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(whole)
    pa.set_memory_pool(counted)
    tracemalloc.start()
    try:
        report = import_file(database, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(whole)
    assert report.imported == 1
    assert [line for line, _ in report.errors] == list(range(2, 62))
    assert {reason for _, reason in report.errors} == {"is longer than the 16 MiB that a row may have"}
    assert peak < 100 << 20
    assert 0 < counted.max_memory() < 600 << 20


def test_a_parquet_file_that_unpacks_to_more_than_is_taken_is_given_up(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MAX_FILE_BYTES", 1 << 20)
    path = write_repeated(tmp_path / "said.parquet", "a" * (2 << 20), 1)  # by its own word
    with pytest.raises(InvalidInput, match="more than 1 MiB unpacked"):
        import_file(database, path)
    path = write_repeated(tmp_path / "repeated.parquet", "a" * 90_000, 200)
    with pytest.raises(InvalidInput, match=r"more than 1 MiB \(row"):
        import_file(database, path)
    monkeypatch.setattr(columns, "MAX_GROUP_BYTES", 1 << 16)
    with pytest.raises(InvalidInput, match="smaller ones"):
        import_file(database, path)


def test_a_missing_file_is_an_error_in_words(database: Database, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"not a file; give a \.jsonl"):
        import_file(database, tmp_path / "nowhere.jsonl")
    with pytest.raises(InvalidInput, match="not a file"):
        import_file(database, tmp_path)


# --- out and back


ROUND_TRIP = [
    PLAIN | {"margin": 2.5},
    HH,
    ROWS["system turn and other fields"][0],
    {"prompt": "Wie heißt «das»?\nUnd dies?", "chosen": "So:\n\n1. \u2028 eins\n2. 🐦", "rejected": "Nein."},
    {"prompt": "Who said so?", "chosen": "A person.", "rejected": "A script.", "simulated": True},
]


@pytest.fixture
def other_database(database: Database, tmp_path: Path) -> Database:
    """An empty database beside the first."""
    import shutil

    shutil.copy(database.engine.url.database or "", tmp_path / "other.db")
    return Database(f"sqlite:///{tmp_path}/other.db")


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_what_is_exported_comes_back_as_it_was(
    other_database: Database, database: Database, tmp_path: Path, name: str
) -> None:
    import_file(database, write(tmp_path / "in.jsonl", ROUND_TRIP))
    assert export_file(database, tmp_path / name, include_simulated=True) == 5
    report = import_file(other_database, tmp_path / name)
    assert (report.imported, report.errors) == (5, [])
    assert content(other_database) == content(database)
    assert [p.simulated for p in preferences(other_database)] == [False] * 4 + [True]


def test_hh_rlhf_comes_back_as_it_was_but_for_system_turns(
    other_database: Database, database: Database, tmp_path: Path
) -> None:
    import_file(database, write(tmp_path / "in.jsonl", ROUND_TRIP))
    marked = {"prompt": "Quote it.", "chosen": "He wrote:\n\nHuman: hello", "rejected": "No."}
    import_file(database, write(tmp_path / "more.jsonl", [marked]))  # would come back as other turns
    assert export_file(database, tmp_path / "out.jsonl", form="hh-rlhf", include_simulated=True) == 4
    report = import_file(other_database, tmp_path / "out.jsonl")
    assert (report.imported, report.errors) == (4, [])
    assert set(report.forms) == {"hh-rlhf"}
    texts = {(prompt, chosen, rejected, simulated) for prompt, chosen, rejected, _, simulated in content(database)}
    kept = {text for text in texts if "Quote it." not in text[0] and '"system"' not in text[0]}
    assert {(p, c, r, s) for p, c, r, _, s in content(other_database)} == kept


def test_simulated_pairs_are_exported_only_when_asked_for(database: Database, tmp_path: Path) -> None:
    import_file(database, write(tmp_path / "in.jsonl", ROUND_TRIP))
    assert export_file(database, tmp_path / "out.jsonl") == 4
    assert "A script." not in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_an_unknown_ending_is_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.jsonl, \.json or"):
        export_file(database, tmp_path / "out.csv")
