"""The chat page, for people who are signed in. It talks to `/v1` as any client does."""

from flask import Blueprint, render_template
from flask_login import current_user, login_required

from core.web import runtime
from serving.routing import served_versions

blueprint = Blueprint(
    "serving", __name__, template_folder="pages", static_folder="static", static_url_path="/static/serving"
)


@blueprint.get("/chat")
@login_required  # type: ignore[untyped-decorator]  # Flask-Login has no types
def chat() -> str:
    """A conversation with the active policy version; leads and admins see which one that is, and may choose another."""
    shows_version = current_user.role in ("lead", "admin")
    versions: list[str] = []
    if shows_version:
        with runtime().db.read() as session:
            versions = [version.name for version in served_versions(session)]
    return render_template("serving/chat.html", shows_version=shows_version, versions=versions)
