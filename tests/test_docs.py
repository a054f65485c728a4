"""The documents tell of all that is there and of nothing else: settings, routes, commands, targets, errors, folders, links."""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from commands import cli, docs_settings, readme_figures
from core.errors import DunnockError, InvalidInput
from core.settings import Settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")), ROOT / "evals" / "suites" / "README.md"]
NOT_SETTINGS = {"DUNNOCK_VENV", "DUNNOCK_CHROMIUM"}  # read before there are settings, and not by the app
OWN = "core|access|feedback|policy|training|reward|evals|finetune|serving|bundle|console|commands"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_in(page: Path) -> str:
    """What stands in code spans and code blocks, a line each."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*blocks, *spans])


def rows_of(page: Path, pattern: str) -> list[tuple[str, ...]]:
    """The matches of a pattern at the beginning of table rows."""
    return [m.groups() for m in re.finditer(rf"^\| {pattern}", text_of(page), re.MULTILINE)]


# Settings -------------------------------------------------------------------------------------------------------------


def test_settings_page_is_current() -> None:
    assert text_of(DOCS / "settings.md") == docs_settings.render(), "run `python -m commands.docs_settings`"


def test_settings_page_lists_every_setting() -> None:
    listed = [name for (name,) in rows_of(DOCS / "settings.md", r"`(DUNNOCK_\w+)`")]
    plain = {f"DUNNOCK_{name.upper()}" for name in Settings.model_fields}
    groups = {"ASSIGNMENT", "GOLD", "CARE", "QUALITY", "OIDC", "TRACKING", "ENERGY", "TELEMETRY"}
    groups |= {"GUARD", "BEST_OF", "SYSTEM_PROMPTS", "SAMPLING", "PRIVACY", "LIMITS"}
    groups |= {"GGUF", "ENGINES", "CACHE", "BUNDLE"}
    groups |= {"COLLECT", "SNAPSHOT", "REWARD", "UPDATE", "PPO", "GATE"}
    assert set(listed) == set(docs_settings.names())
    assert len(listed) == len(set(listed))
    assert {name for name in listed if "__" not in name} == plain - {f"DUNNOCK_{group}" for group in groups}
    assert {name.split("__")[0] for name in listed if "__" in name} == {f"DUNNOCK_{group}" for group in groups}


def test_a_listed_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("DUNNOCK_WEB_PORT", "9"), ("DUNNOCK_UPDATE__BETA", "0.7")):
        assert name in docs_settings.names()
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)
    assert (settings.web_port, settings.update.beta) == (9, 0.7)


@each_page
def test_every_setting_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"\bDUNNOCK_[A-Z0-9_]*[A-Z0-9]\b", text_of(page)))
    assert named <= {*docs_settings.names(), *NOT_SETTINGS}


# Routes and errors ----------------------------------------------------------------------------------------------------


def test_every_route_is_documented_and_no_other(app: Flask) -> None:
    there = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    listed = rows_of(DOCS / "api.md", r"(GET|POST|PUT|PATCH|DELETE) \| `([^`]+)` \| [^|]+\S [^|]*\| \S")
    assert set(listed) == there
    assert len(listed) == len(there)


def test_every_error_is_documented() -> None:
    def tree(kind: type[DunnockError]) -> Iterator[type[DunnockError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    kinds = [kind for kind in tree(DunnockError) if kind.__module__ == "core.errors"]
    listed = dict(rows_of(DOCS / "api.md", r"`(\w+)` \| (\d+)"))
    assert len(kinds) > 10
    assert {kind.code: str(kind.status) for kind in kinds}.items() <= listed.items()


# Commands -------------------------------------------------------------------------------------------------------------


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_make_target_is_documented() -> None:
    listed = [name for (name,) in rows_of(DOCS / "commands.md", r"`make ([a-z-]+)` \| \w")]
    assert sorted(listed) == sorted(make_targets())


def test_make_help_tells_of_every_target() -> None:
    told = set(re.findall(r"^([a-z-]+): .*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert told == make_targets()


def test_every_flask_command_is_documented(app: Flask) -> None:
    listed = rows_of(DOCS / "commands.md", r"`flask --app app ([a-z-]+)[^`]*` \| [^|]+\| ([^\n]*)\|")
    assert sorted(name for name, _ in listed) == sorted(app.cli.commands)
    for name, options in listed:
        known = {o for p in app.cli.commands[name].params for o in p.opts if o.startswith("--")}
        assert known == set(re.findall(r"`(--[a-z-]+)", options)), name


def test_the_commands_are_the_ones_of_the_module(app: Flask) -> None:
    assert all(command.callback.__module__ == cli.__name__ for command in app.cli.commands.values())


def test_every_module_that_can_be_run_is_documented() -> None:
    there = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in OWN.split("|")
        for path in (ROOT / folder).rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    listed = {name for (name,) in rows_of(DOCS / "commands.md", r"`python -m ((?:\w+\.)+\w+)")}
    assert "finetune.worker" in there
    assert there - {"commands.bootstrap"} == listed
    assert "commands/bootstrap.py" in text_of(DOCS / "commands.md")


@each_page
def test_every_command_that_is_named_exists(page: Path, app: Flask) -> None:
    code = code_in(page)
    assert set(re.findall(r"(?:^|[\s(])make ([a-z][a-z-]*)", code, re.MULTILINE)) <= make_targets()
    assert set(re.findall(r"flask --app app ([a-z][a-z-]*)", code)) <= set(app.cli.commands)
    for name in re.findall(rf"python3? -m ((?:{OWN})(?:\.\w+)+)", code):
        assert (ROOT / Path(*name.split("."))).with_suffix(".py").is_file(), name


def test_the_readme_names_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert ci.startswith("make ")
    assert re.search(rf"^{re.escape(ci)}\b", code_in(ROOT / "README.md"), re.MULTILINE)


# Links and the house --------------------------------------------------------------------------------------------------


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} is not there"
        assert found.is_relative_to(ROOT), f"{target} leads out of the repository"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", text_of(found), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@each_page
def test_no_path_of_a_machine_is_named(page: Path) -> None:
    assert not re.findall(r"(?<![\w.:/])/(?:home|root|work|Users|mnt)/", text_of(page))


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text_of(ROOT / "README.md"))}
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= linked


def may_import(config: dict[str, Any]) -> dict[str, set[str]]:
    """Folder → folders below it in the layers, without those that another contract forbids it as a whole."""
    contracts = config["tool"]["importlinter"]["contracts"]
    layers = [re.split(r"\s*\|\s*", layer) for layer in next(c["layers"] for c in contracts if c["type"] == "layers")]
    allowed = {
        name: {lower for below in layers[depth + 1 :] for lower in below}
        for depth, layer in enumerate(layers)
        for name in layer
    }
    for contract in contracts:
        if contract["type"] == "forbidden":
            for name in contract["source_modules"]:
                allowed[name] -= set(contract["forbidden_modules"])
    allowed.pop("app", None)
    return allowed


def test_the_house_is_told_as_it_is_held() -> None:
    allowed = may_import(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    rows = rows_of(DOCS / "design.md", r"`(\w+)/` \| [^|]+\| ([^|]+) \|")
    told = {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows if name in allowed}
    assert told == allowed


# The README's figures -------------------------------------------------------------------------------------------------


def rate(value: float, n: int) -> dict[str, Any]:
    return {"rate": value, "n": n, "low": value / 2, "high": 2 * value}


@pytest.fixture
def report() -> dict[str, Any]:
    """A report with the keys that `commands.demo_report.build_report` writes."""
    paired = {"base": 2.5, "candidate": 2.25, "difference": {"mean": -0.25}}
    side = {"benign_refusal": rate(0.03, 100), "mean_benign_tokens": 41.0}
    return {
        "cycle": 1, "state": "promoted", "policy_version": "v1",
        "base": {**side, "harmful_compliance": rate(0.4, 103)},
        "promoted": {**side, "harmful_compliance": rate(0.125, 103)},
        "reward": {"accuracy": 0.75, "n": 40, "low": 0.6, "high": 0.9, "length_only": 0.5, "clears_bar": True},
        "gate": {"passed": True, "checks": [{"name": "length", "passed": True}]},
        "quality": {
            "kl": {"mean": 0.125}, "reference_nll": paired, "fluency": paired,
            "capability": {"n": 80, "base": 0.5, "candidate": 0.475},
        },
        "judge": {"error": rate(0.05, 120), "real": {"error": rate(0.02, 208)}},
        "snapshot": {"n_train": 150, "n_heldout": 40, "n_simulated": 190},
        "stages": [{"name": "update", "seconds": 61.4, "peak_mb": 1500, "attempts": 1}],
        "seconds": 61.4, "examples": [],
    }  # fmt: skip


def test_figures_are_put_between_the_marks(report: dict[str, Any]) -> None:
    readme = text_of(ROOT / "README.md")
    before, after = readme.split(readme_figures.START)[0], readme.split(readme_figures.END)[1]
    new = readme_figures.replaced(readme, readme_figures.render(report, "2 cores, 8 GB"))
    assert new.startswith(before + readme_figures.START)
    assert new.endswith(readme_figures.END + after)
    assert "| 40.0 % (20.0–80.0, n 103) | 12.5 % (6.2–25.0, n 103) |" in new
    assert "190 of these 190 rest on simulated judgments" in new
    assert "1,500 MB. Machine: 2 cores, 8 GB." in new
    assert readme_figures.replaced(new, readme_figures.render(report, "2 cores, 8 GB")) == new


def test_a_failed_check_is_told(report: dict[str, Any]) -> None:
    report |= {"state": "refused", "gate": {"passed": False, "checks": [{"name": "length", "passed": False}]}}
    assert "v1 was refused. Gate: failed length." in readme_figures.render(report, "m")


@pytest.mark.parametrize(
    "key", ["base", "promoted", "reward", "quality", "judge", "snapshot", "stages", "seconds", "gate"]
)
def test_no_figure_is_left_out_in_silence(report: dict[str, Any], key: str) -> None:
    del report[key]
    with pytest.raises(InvalidInput, match=key):
        readme_figures.render(report, "m")


@pytest.mark.parametrize("marks", ["", readme_figures.START, readme_figures.END + readme_figures.START])
def test_a_readme_without_its_marks_is_left_alone(marks: str) -> None:
    with pytest.raises(InvalidInput, match="must hold"):
        readme_figures.replaced(f"# Dunnock\n{marks}\n", "x")


@pytest.mark.parametrize("content", [None, "no json", "[]"])
def test_a_report_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "demo.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput):
        readme_figures.read(path)


def test_every_picture_is_made_by_the_target_and_shown() -> None:
    from commands.screenshots import SHOTS

    shown = set()
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        shown |= set(re.findall(r"pictures/([a-z-]+)\.png", page.read_text(encoding="utf-8")))
    assert shown == set(SHOTS) == {picture.stem for picture in (DOCS / "pictures").glob("*.png")}
