"""The studio as a running server: its socket, its address, its token."""

import ipaddress
import secrets
import socket
from pathlib import Path

import uvicorn

from tokvid.errors import Terminated, UserError
from tokvid.studio.guard import LOOPBACK
from tokvid.studio.server import Studio, application
from tokvid.studio.worlds import World


def serve(folder: Path, worlds: dict[str, World], address: tuple[str, int]) -> None:
    """Serves until it is interrupted. UserError where the address or the folder cannot be used."""
    host, port = address
    listening = listen(host, port)
    port = listening.getsockname()[1]
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    app = application(Studio(folder, worlds), LOOPBACK if token is None else None, token)
    named = f"[{host}]" if ":" in host else host
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
    try:
        family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
    except OSError as error:
        hint = "choose another --port" if isinstance(error, PermissionError) or error.errno == 98 else "check --host"
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; {hint}") from error
    listening.listen(128)
    return listening
