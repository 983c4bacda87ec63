"""The studio as a running server: its socket, its address, its token."""

import contextlib
import errno
import ipaddress
import secrets
import socket
from pathlib import Path

import uvicorn

from tokvid.errors import Terminated, UserError, reason
from tokvid.studio.guard import LOOPBACK
from tokvid.studio.server import application
from tokvid.studio.state import Studio
from tokvid.studio.worlds import World


def serve(folder: Path, worlds: dict[str, World], address: tuple[str, int]) -> None:
    """Serves until it is interrupted. UserError where the address or the folder cannot be used."""
    host, port = address
    listening = listen(host, port)
    port = listening.getsockname()[1]
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    named = f"[{host}]" if ":" in host else host
    app = application(Studio(folder, worlds), (*LOOPBACK, named) if token is None else None, token)
    if token is None:
        print(f"tokvid studio: http://{named}:{port}  (Ctrl-C stops it)", flush=True)
    else:
        print(f"tokvid studio: http://{named}:{port}/?token={token}  (whoever has this link can use it)", flush=True)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=2, ws="none")
    )
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt as error:
        if isinstance(error, Terminated):
            raise
        print("tokvid studio: stopped; unfinished videos are finished when it is started again", flush=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; UserError where none can."""
    with contextlib.ExitStack() as stack:
        try:
            family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listening = stack.enter_context(socket.socket(family, kind))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen(128)
        except UnicodeError as error:  # a label of more than 63 letters, or an empty one
            raise UserError(f"cannot listen on {host:.80}: it is no name of a machine; check --host") from error
        except OSError as error:
            taken = isinstance(error, PermissionError) or error.errno == errno.EADDRINUSE
            hint = "choose another --port" if taken else "check --host"
            raise UserError(f"cannot listen on {host}:{port}: {reason(error)}; {hint}") from error
        stack.pop_all()
    return listening
