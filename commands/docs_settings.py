"""`docs/settings.md` from the settings themselves: every variable, its default, what it takes, what it means.

    python -m commands.docs_settings        rewrite docs/settings.md

Nothing of this machine gets into it: defaults are the code's, before any path is resolved.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from core.artifacts import write_text
from core.settings import Settings, SettingsGroup, StageSettings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
PREFIX = "DUNNOCK_"
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
KINDS = {str(bool): "`true`, `false`", str(int): "a whole number", str(float): "a number", str(Path): "a path"}
INTRO = """\
# Settings

<!-- Written by `python -m commands.docs_settings`; change the descriptions in core/settings/, not here. -->

Every setting is an environment variable, or a line of `.env` in the working folder. The environment wins over
`.env`. Names that are not listed here are ignored. All processes of an installation must see the same settings.

Units stand in the names: `_s` seconds, `_tokens`, `_frac` a share from 0 to 1. A setting of a group or a stage has two
underscores after its name.

The settings of the stages are fixed when a cycle is requested and kept with it; a change counts for the next cycle.
Two more variables are read before there are settings, and not by the app: `DUNNOCK_VENV` (the virtual environment of
`make`, by default `.venv`) and `DUNNOCK_CHROMIUM` (the browser of the browser tests and of `make screenshots`).
"""


def render() -> str:
    """The whole page."""
    plain = {name: field for name, field in Settings.model_fields.items() if not _group(field)}
    parts = [INTRO, "## Deployment\n", _table(PREFIX, plain)]
    for name, field in Settings.model_fields.items():
        group = _group(field)
        if group is not None:
            kind = "Stage" if issubclass(group, StageSettings) else "Group"
            prefix = f"{PREFIX}{name.upper()}__"
            parts += [f"## {kind} `{name}`\n", f"{group.__doc__}\n", _table(prefix, group.model_fields)]
    return "\n".join(parts)


def names() -> Iterator[str]:
    """Every variable, as it is written in the environment."""
    for name, field in Settings.model_fields.items():
        group = _group(field)
        if group is None:
            yield f"{PREFIX}{name.upper()}"
        else:
            yield from (f"{PREFIX}{name.upper()}__{inner.upper()}" for inner in group.model_fields)


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsGroup) else None


def _table(prefix: str, fields: dict[str, FieldInfo]) -> str:
    rows = ["| variable | default | takes | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{prefix}{name.upper()}` | {_default(field.default)} | {_takes(field)} | {meaning} |")
    return "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "empty" if value == "" else f"`{value}`"


def _takes(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if get_origin(field.annotation) in (list, dict):
        return "JSON"
    kind = KINDS.get(str(field.annotation), "text")
    bounds = [f"{sign} {getattr(m, key):g}" for m in field.metadata for key, sign in SIGNS.items() if hasattr(m, key)]
    return ", ".join([kind, *bounds])


if __name__ == "__main__":
    write_text(PAGE, render())
    print(f"{len(list(names()))} settings written to {PAGE.relative_to(PAGE.parent.parent)}")
