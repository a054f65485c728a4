"""Every page with a thousand rows more in every list: it is paged or bounded, and stays light."""

import re
from collections.abc import Callable

from flask import Flask

from core.db import Database
from core.settings import Settings
from tests.factories import PASSWORD
from tests.pages.look import MAX_BYTES
from tests.pages.places import PLACES
from tests.pages.rows import fill, fill_up
from tests.pages.texts import Texts

MANY = 1_000
IMPORTED = 20_000
"""Bytes left for modules that are loaded by others."""


def test_pages_stay_light(app: Flask, database: Database, settings: Settings) -> None:
    with database.session() as session:
        found = fill(session, settings, Texts(hostile=False))
        fill_up(session, found, MANY)
    clients = {who: app.test_client() for who in {place.who for place in PLACES}}
    for who, client in clients.items():
        if who:
            client.post("/sign-in", data={"login": found.logins[who], "password": PASSWORD})
    sizes = {place.name(): 0 for place in PLACES}
    for place in PLACES:
        answer = clients[place.who].get(place.path.format(**found.address))
        assert answer.status_code == place.status, place.name()
        linked = re.findall(r'(?:href|src)="(/[^"]*static/[^"]+)"', answer.text)
        sizes[place.name()] = len(answer.data) + sum(_size(clients[place.who].get, address) for address in linked)
    assert {name: size for name, size in sizes.items() if size > MAX_BYTES - IMPORTED} == {}


def _size(get: Callable, address: str) -> int:
    answer = get(address)
    size = len(answer.data)
    answer.close()
    return size
