"""Posting to an address that somebody typed in: never to a private one, never longer than a bound, never elsewhere.

The name is resolved here, every address that it has is looked at, and the connection is made to the address that was looked
at, so that a name which changes its address in between gains nothing. Redirects are not followed, answers are not read.
"""

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from core.errors import InvalidInput
from core.language import gettext

MAX_URL = 500
NAT64 = ipaddress.ip_network("64:ff9b::/96")
UNICAST = ipaddress.ip_network("2000::/3")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Undeliverable(Exception):
    """A delivery that did not reach a server which answered; the words are shown to leads."""


def checked_url(url: str, *, allow_private: bool) -> str:
    """An address that webhooks may be sent to, as far as it can be told without a look-up.

    Raises:
        InvalidInput: what is wrong with it.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(gettext("this is no URL: %(error)s", error=error), param="url") from error
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidInput(gettext("a URL has at most %(most)s plain characters", most=MAX_URL), param="url")
    if parts.scheme not in (("https", "http") if allow_private else ("https",)) or not host:
        raise InvalidInput(gettext("give a URL that begins with https:// and names a host"), param="url")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidInput(
            gettext("the URL must hold no name, password or #; the signature says who sends"), param="url"
        )
    if (literal := _literal(host)) is not None and not allow_private and not is_public(literal):
        raise InvalidInput(gettext("%(host)s is a private address; webhooks go to public ones", host=host), param="url")
    return url


def is_public(address: Address) -> bool:
    """Whether an address is one of the open Internet, also by every IPv4 address that it may carry inside."""
    inside: list[Address | None] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inside += [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None)
        if address not in UNICAST and address not in NAT64:  # e.g. fec0::/10, which counts as global elsewhere
            return False
    return all(one.is_global and not one.is_multicast for one in inside if one is not None)


def post(url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float, allow_private: bool) -> int:
    """Post a body and return the status that was answered.

    Raises:
        Undeliverable: nothing answered in time, or it must not be asked.
    """
    guard = _Guard(time.monotonic() + timeout_s, allow_private=allow_private)
    left = {"connect": timeout_s, "read": timeout_s, "write": timeout_s, "pool": timeout_s}
    try:
        checked_url(url, allow_private=allow_private)
        with (
            httpcore.ConnectionPool(ssl_context=_tls(), network_backend=guard) as pool,
            pool.stream(
                "POST", url, headers=list(headers.items()), content=body, extensions={"timeout": left}
            ) as answer,
        ):
            return answer.status
    except InvalidInput as error:
        raise Undeliverable(error.message) from error
    except httpcore.TimeoutException as error:
        raise Undeliverable(f"no answer within {timeout_s:g} s") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise Undeliverable(f"no connection: {error}"[:300]) from error


class _Guard(httpcore.NetworkBackend):
    """Connects to addresses that may be asked, with streams that end at a deadline."""

    def __init__(self, deadline: float, *, allow_private: bool) -> None:
        self.deadline, self.allow_private = deadline, allow_private
        self.real = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failed: Exception = Undeliverable("the name has no address")
        for address in self._addresses(host, port):
            try:
                return _Timed(self.real.connect_tcp(address, port, _left(self.deadline), local_address), self.deadline)
            except httpcore.NetworkError as error:
                failed = error
        raise failed

    def _addresses(self, host: str, port: int) -> list[str]:
        addresses = _looked_up(host, port, _left(self.deadline))
        if not self.allow_private:
            for address in addresses:
                literal = _literal(address)
                if literal is None or not is_public(literal):
                    raise Undeliverable(f"{host} has the private address {address}; webhooks go to public ones")
        return addresses


class _Timed(httpcore.NetworkStream):
    """A stream whose every read and write ends at one deadline: a server that sends a byte now and then holds nobody."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _left(self.deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _left(self.deadline))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self.stream.start_tls(ssl_context, server_hostname, _left(self.deadline)), self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _looked_up(host: str, port: int, timeout_s: float) -> list[str]:
    """The addresses of a name. The system's look-up knows no deadline, so it runs beside and is left alone when it is late.

    Raises:
        OSError: the name has none.
        httpcore.ConnectTimeout: nothing was found in time.
    """
    found: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put(list(dict.fromkeys(str(entry[4][0]) for entry in entries)))
        except (OSError, UnicodeError) as error:
            found.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=look_up, name="webhook look-up", daemon=True).start()
    try:
        answer = found.get(timeout=timeout_s)
    except queue.Empty:
        raise httpcore.ConnectTimeout("the look-up of the name takes too long") from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time is over")
    return left


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()
