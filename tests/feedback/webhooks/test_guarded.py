"""Where webhooks go and where not: private addresses by number, by name, by a name that changes, inside others."""

import ipaddress
import socket
import threading
import time
from typing import Any

import pytest

from core.errors import InvalidInput
from feedback.webhooks.guarded import Undeliverable, checked_url, is_public, post
from tests.feedback.webhooks.receiver import receiving


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
        "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "fec0::1",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "", "example.org", "ftp://example.org", "http://example.org", "https://", "https:///x", "https://127.0.0.1/",
        "https://[::1]/", "https://user@example.org/", "https://user:word@example.org/", "https://example.org/#x",
        "https://example.org:99999/", "https://exa mple.org/", "https://example.org/\r\nx: y", "https://[::1", "javascript:x",
        "https://" + "x" * 500, "https://ex\u0430mple.org/", "https://169.254.169.254/latest/meta-data",
    ],
)  # fmt: skip
def test_addresses_that_are_refused_when_they_are_typed(url: str) -> None:
    with pytest.raises(InvalidInput):
        checked_url(url, allow_private=False)


def test_addresses_that_are_taken() -> None:
    assert checked_url(" https://example.org:8443/in?x=1 ", allow_private=False) == "https://example.org:8443/in?x=1"
    assert checked_url("http://127.0.0.1:9/", allow_private=True) == "http://127.0.0.1:9/"


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f000001", "127.1", "0177.0.0.1"])
def test_a_name_for_a_private_address_is_not_asked(host: str) -> None:
    with receiving() as receiver:
        port = receiver.url.rpartition(":")[2]
        with pytest.raises(Undeliverable, match=r"private address|no connection"):
            post(f"https://{host}:{port}/", {}, b"{}", timeout_s=2, allow_private=False)
        assert receiver.got == []


def test_a_name_with_one_private_address_among_public_ones_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(host: str, port: int, **_: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(Undeliverable, match=r"private address 10\.0\.0\.1"):
        post("https://example.org/", {}, b"{}", timeout_s=2, allow_private=False)


def test_it_connects_to_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is resolved once: it cannot be public when it is looked at and private when it is connected to."""
    with receiving() as receiver:
        real, asked = socket.getaddrinfo, []
        port = int(receiver.url.rpartition(":")[2])

        def resolved(host: str, *args: Any, **more: Any) -> Any:
            asked.append(host)
            return real("127.0.0.1" if host == "hook.example" else host, *args, **more)

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        assert post(f"http://hook.example:{port}/", {}, b"{}", timeout_s=5, allow_private=True) == 204
        assert asked.count("hook.example") == 1
        assert receiver.got[0][1]["host"] == f"hook.example:{port}"


def test_a_certificate_that_is_not_trusted_is_not_talked_to() -> None:
    with receiving() as receiver, pytest.raises(Undeliverable, match="no connection"):
        post(receiver.url.replace("http", "https"), {}, b"{}", timeout_s=5, allow_private=True)


def test_a_name_that_is_looked_up_slowly_holds_nobody_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def slowly(*_: Any, **__: Any) -> list[Any]:
        answered.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    start = time.monotonic()
    with pytest.raises(Undeliverable, match=r"no answer within 0\.3 s"):
        post("https://example.org/", {}, b"{}", timeout_s=0.3, allow_private=False)
    assert time.monotonic() - start < 5
    answered.set()
