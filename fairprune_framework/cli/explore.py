"""`fairprune explore`: a local page that compares the two models of a run."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_unsafe, unsafe_options
from fairprune_framework.errors import UserError, shortened
from fairprune_framework.utilities.progress import notifier


def _add_options(parser: Any) -> None:
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default this machine alone")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860")
    add_unsafe(parser)


def _run(values: dict[str, Any]) -> int:
    if importlib.util.find_spec("gradio") is None:
        raise UserError("exploring needs gradio: pip install 'fairprune_framework[explore]'")
    host, port = values.get("host") or "127.0.0.1", values.get("port")
    refuse_unusable(host, port)
    from fairprune_framework.exploring.compare import Explorer
    from fairprune_framework.exploring.page import serve
    from fairprune_framework.runs.open import open_existing

    explorer = Explorer(open_existing(values["run"], unsafe_options(values), notify=notifier("explore")))
    serve(explorer, host, port)
    return 0


def refuse_unusable(host: str, port: int | None) -> None:
    """Raise `UserError` for an address where this machine cannot listen: before a model is loaded."""
    if port is not None and not 0 < port < 65536:
        raise UserError(f"--port must be in [1, 65535]. Got {port} instead.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        where = host if port is None else f"{host}:{port}"
        raise UserError(f"cannot serve on {shortened(where, 300)}: {getattr(error, 'strerror', None) or error}") from error


COMMANDS = (
    Command(name="explore", help="a local page: type two prompts, see both models", add_options=_add_options, run=_run),
)
