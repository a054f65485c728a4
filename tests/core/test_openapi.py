"""The document of the programming interface, out of views of an app that is made here."""

from typing import Any

import pytest
from flask import Flask
from pydantic import BaseModel, Field

from core.openapi import document, operation


class Body(BaseModel):
    """What is sent."""

    name: str = Field(description="Any.")


class Query(BaseModel):
    limit: int = Field(5, ge=1, le=9)
    kind: str | None = None


class Thing(BaseModel):
    """A thing."""

    id: int


@pytest.fixture
def told() -> dict[str, Any]:
    app = Flask("here")

    @app.post("/api/v1/things/<int:number>")
    @operation("Things", {201: Thing}, body=Body, query=Query, scope="manage", errors=(404,))
    def make(number: int) -> str:
        """Make a thing.

        More about it.
        """
        return ""

    @app.get("/v1/<name>")
    @operation("Old", Thing)
    def show(name: str) -> str:
        """Show it."""
        return ""

    @app.get("/api/v1/untold")
    def untold() -> str:
        return ""

    return document(app)


def test_a_call_is_told_as_its_view_says(told: dict[str, Any]) -> None:
    assert list(told["paths"]) == ["/api/v1/things/{number}", "/v1/{name}"]
    call = told["paths"]["/api/v1/things/{number}"]["post"]
    assert (call["summary"], call["description"], call["security"]) == (
        "Make a thing.", "More about it.", [{"key": ["manage"]}],
    )  # fmt: skip
    assert call["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Body"}
    assert set(call["responses"]) == {"201", "400", "401", "403", "404", "405", "413"}
    parameters = {parameter["name"]: parameter for parameter in call["parameters"]}
    assert parameters["number"]["schema"]["type"] == "integer"
    assert parameters["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 9}
    assert parameters["kind"]["schema"] == {"type": "string"}
    assert [parameter["required"] for parameter in call["parameters"]] == [True, False, False]


def test_errors_have_the_shape_of_their_part(told: dict[str, Any]) -> None:
    new = told["paths"]["/api/v1/things/{number}"]["post"]["responses"]["404"]["content"]
    assert list(new) == ["application/problem+json"]
    assert told["paths"]["/v1/{name}"]["get"]["responses"].keys() == {"200"}
    assert "security" not in told["paths"]["/v1/{name}"]["get"]
    assert {"Body", "Thing", "Problem", "OpenAIError"} <= set(told["components"]["schemas"])
