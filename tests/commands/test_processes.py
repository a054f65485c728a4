"""Processes are started only where nobody else answers."""

import socket

import pytest

from commands.processes import require_free
from core.errors import Conflict


def test_a_taken_port_is_told_with_the_setting_that_helps() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=f"Port {port} is taken.*DUNNOCK_WEB_PORT"):
            require_free("web server", "127.0.0.1", port, "DUNNOCK_WEB_PORT")
    require_free("web server", "127.0.0.1", port, "DUNNOCK_WEB_PORT")
