"""`/api/docs` and `/api/v1/openapi.json`: the programming interface, told by its own document.

The page is drawn here from the document, in plain HTML: the bundles that draw such pages (Swagger UI, Redoc, Scalar) are over
a megabyte of script each, write styles into the page, which our content-security policy forbids, and show nothing without a
script.
"""

import re
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, render_template
from markupsafe import Markup, escape

from core.openapi import document

blueprint = Blueprint("api_docs", __name__, url_prefix="/api")

MEMO = "dunnock.openapi"


@blueprint.get("/v1/openapi.json")
def openapi() -> Response:
    """The OpenAPI 3.1 document."""
    return jsonify(_document())


@blueprint.get("/docs")
def docs() -> str:
    """The document as a page."""
    told = _document()
    tags: dict[str, list[dict[str, Any]]] = {}
    for path, methods in told["paths"].items():
        for method, call in methods.items():
            tags.setdefault(call["tags"][0], []).append({"method": method.upper(), "path": path, **call})
    return render_template("feedback/api_docs.html", document=told, tags=tags, type_of=type_of, marked=marked)


def _document() -> dict[str, Any]:
    """Made once per app: routes do not change while it runs."""
    found: dict[str, Any] = current_app.extensions.setdefault(MEMO, {})
    if not found:
        found.update(document(current_app._get_current_object()))  # type: ignore[attr-defined]
    return found


def marked(text: str) -> Markup:
    """A description with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 (it is escaped before)


def type_of(schema: dict[str, Any]) -> tuple[str, str | None]:
    """What a field is, in a few words, and the schema that it names, if any."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return name, name
    for joined in ("anyOf", "oneOf"):
        if joined in schema:
            parts = [type_of(part) for part in schema[joined]]
            named = [name for _, name in parts if name]
            return " or ".join(words for words, _ in parts), named[0] if len(named) == 1 else None
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"]), None
    if "const" in schema:
        return str(schema["const"]), None
    if schema.get("type") == "array":
        words, name = type_of(schema.get("items", {}))
        return f"list of {words}", name
    return _plain(schema), None


def _plain(schema: dict[str, Any]) -> str:
    word = str(schema.get("format") or schema.get("type") or "anything")
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", schema.get("minLength")))
    highest = schema.get("maximum", schema.get("exclusiveMaximum", schema.get("maxLength")))
    if isinstance(highest, int) and highest >= 2**31 - 1:
        lowest, highest = None if (lowest or 0) < 0 else lowest, None
    if lowest is not None and highest is not None:
        return f"{word}, {lowest} to {highest}"
    return f"{word}, at least {lowest}" if lowest else f"{word}, at most {highest}" if highest is not None else word
