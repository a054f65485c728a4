"""The chat page, for people who are signed in. It talks to `/v1` as any client does."""

from typing import Literal

from flask import Blueprint, Response, jsonify, render_template
from flask_login import current_user, login_required
from pydantic import Field

from access.views import current_person, require_role
from core.body import parse_body
from core.web import runtime
from feedback.comparisons import record_comparison
from serving.routing import served_versions
from serving.schemas import Wire

blueprint = Blueprint(
    "serving", __name__, template_folder="pages", static_folder="static", static_url_path="/static/serving"
)


class ComparisonBody(Wire):
    """Which of two replies is better, as they stood from left to right."""

    left: str = Field(max_length=40)
    right: str = Field(max_length=40)
    choice: Literal["left", "right", "tie", "both_bad"]
    blind: bool


@blueprint.get("/chat")
@login_required  # type: ignore[untyped-decorator]  # Flask-Login has no types
def chat() -> str:
    """A conversation with the active policy version; leads and admins see which one that is, and may choose another, or two."""
    shows_version = current_user.role in ("lead", "admin")
    versions: list[str] = []
    if shows_version:
        with runtime().db.read() as session:
            versions = [version.name for version in served_versions(session)]
    return render_template("serving/chat.html", shows_version=shows_version, versions=versions)


@blueprint.post("/chat/comparisons")
@require_role("lead")
def compare() -> tuple[Response, int]:
    """Keep which of two replies that stood side by side a lead prefers."""
    body = parse_body(ComparisonBody)
    with runtime().db.session() as session:
        stored = record_comparison(
            session, left_id=body.left, right_id=body.right, person_id=current_person().id, choice=body.choice,
            blind=body.blind,
        )  # fmt: skip
    return jsonify(object="comparison", judgment_id=stored.id), 201
