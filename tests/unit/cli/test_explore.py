"""`fairprune explore`: an address where nothing can listen is refused before a model is loaded."""

from __future__ import annotations

import socket

import pytest

from fairprune_framework.cli.explore import refuse_unusable
from fairprune_framework.errors import UserError


def test_an_address_of_this_machine_will_do() -> None:
    refuse_unusable("127.0.0.1", None)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 99999, r"--port must be in \[1, 65535\]. Got 99999"),
        ("127.0.0.1", -1, r"--port must be in \[1, 65535\]. Got -1"),
        ("1.2.3.4.5", None, "cannot serve on 1.2.3.4.5: "),
        ("192.0.2.1", 7860, "cannot serve on 192.0.2.1:7860: Cannot assign requested address"),
        ("a" * 70, None, "cannot serve on a"),
    ],
)
def test_others_are_one_line(host: str, port: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        refuse_unusable(host, port)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve on 127.0.0.1:{port}: Address already in use"):
            refuse_unusable("127.0.0.1", port)
