"""The language of pages: chosen, asked for by the browser, or English."""

import pytest
from flask import Flask
from flask.testing import FlaskClient

from core.language import LANGUAGES


@pytest.mark.parametrize(
    ("asked", "cookie", "lang"),
    [
        ("", None, "en"),
        ("de-AT,de;q=0.9,en;q=0.5", None, "de"),
        ("fr,en;q=0.4", None, "en"),
        ("fr", None, "en"),
        ("de", "en", "en"),
        ("en", "de", "de"),
        ("de", "tlh", "de"),
    ],
)
def test_which_language_a_page_speaks(client: FlaskClient, asked: str, cookie: str | None, lang: str) -> None:
    if cookie:
        client.set_cookie("language", cookie)
    page = client.get("/sign-in", headers={"Accept-Language": asked} if asked else {}).text
    assert f'<html lang="{lang}">' in page
    others = set(LANGUAGES) - {lang}
    assert all(f'name="language" value="{other}"' in page for other in others)


def test_the_choice_is_remembered_and_leads_back_here_only(client: FlaskClient) -> None:
    answer = client.post("/language", data={"language": "de", "next": "/sign-in?next=/chat"})
    assert (answer.status_code, answer.location) == (303, "/sign-in?next=/chat")
    assert '<html lang="de">' in client.get("/sign-in").text
    assert client.post("/language", data={"language": "de", "next": "https://elsewhere"}).location == "/"
    client.post("/language", data={"language": "tlh"})
    assert '<html lang="de">' in client.get("/sign-in").text


def test_outside_of_a_request_texts_are_english(app: Flask) -> None:
    from core.language import gettext

    assert gettext("Sign in") == "Sign in"
    with app.app_context():
        assert gettext("Sign in") == "Sign in"
