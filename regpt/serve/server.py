"""Open the address, run the server, and end on Ctrl-C or SIGTERM."""

import contextlib
import errno
import ipaddress
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter

from regpt.base.errors import DONE, INTERRUPTED, UserError
from regpt.distributed.signals import ImmediateStop
from regpt.serve.access import LOOPBACK_NAMES, Access
from regpt.serve.app import create_app

LEAST_TOKEN = 16  # characters
GRACE_SECONDS = 2  # for open connections, after a signal
HIGHEST_PORT = 65_535


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    family: socket.AddressFamily
    host: str  # as the user named it
    ip: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        return ipaddress.ip_address(self.ip.partition("%")[0]).is_loopback

    @property
    def name(self) -> str:
        """The host as an address of a page has it."""
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True)
class ServedModel:
    """A model that the server answers for."""

    name: str
    routes: APIRouter


def resolve(host: str, port: int) -> Address:
    """Find the address of a host's name. Raises UserError if it has none."""
    if not 0 <= port <= HIGHEST_PORT:
        raise UserError(f"--port {port} is not a port", f"give a number from 1 to {HIGHEST_PORT:,}")
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host!r} is not an address ({error})", "give 127.0.0.1, or leave it out") from None
    return Address(family, host, str(place[0]), port)


def access_to(address: Address, token: str | None) -> Access:
    """Return whom the server answers. Raises UserError for an address that others reach without a token."""
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"--token has {len(token)} characters; it needs at least {LEAST_TOKEN}, all ASCII",
            f"take a random one: --token {secrets.token_urlsafe(LEAST_TOKEN)}",
        )
    if address.is_loopback:
        return Access(LOOPBACK_NAMES | {address.name.lower()}, token or "")
    if token is None:
        raise UserError(
            f"--host {address.host} is reachable from other machines, and there is no --token",
            f"add --token {secrets.token_urlsafe(LEAST_TOKEN)}, or leave out --host: then only this machine connects",
        )
    return Access(None, token)  # the token protects it under any name


def open_socket(address: Address) -> socket.socket:
    """Listen at an address. Raises UserError if it cannot be used."""
    opened = socket.socket(address.family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((address.ip, address.port))
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise UserError(
            f"cannot listen at {address.name}:{address.port} ({error.strerror})", listening_advice(error, address)
        ) from None
    return opened


def listening_advice(error: OSError, address: Address) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            other = address.port + 1 if address.port < HIGHEST_PORT else 8000
            return f"another program uses this port, perhaps another `regpt serve`: stop it, or add --port {other}"
        case errno.EACCES | errno.EPERM:
            return "ports below 1024 need the administrator: add --port 8000"
    return "give an address of this machine with --host, or leave it out"


class Server(uvicorn.Server):
    """uvicorn's server, stopped by regpt's handler of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ServerStop(ImmediateStop):
    """The first signal lets open connections end, a second one closes them."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server

    def on_signal(self, number: int, frame: Any) -> None:
        self.server.force_exit = self.stopped is not None
        self.server.should_exit = True
        super().on_signal(number, frame)


def serve(
    root: Path, host: str, port: int, token: str | None, say: Callable[[str], None], model: "ServedModel | None" = None
) -> int:
    """Serve the runs in `root`, and a model, until a signal; return the exit code, which is 0 after Ctrl-C.

    Raises UserError where the folder or the address cannot be used.
    """
    if not root.is_dir() and model is None:
        raise UserError(f"{root}/ is not a folder", "name the folder of the runs: regpt serve --runs FOLDER")
    address = resolve(host, port)
    access = access_to(address, token)
    with open_socket(address) as opened:
        app = create_app(root, access, (model.routes,) if model else ())
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = Server(config)
        with ServerStop(server) as stopping:
            port = opened.getsockname()[1]
            what = f"{model.name} and the runs" if model else "runs"
            say(f"{what} in {root}/ at http://{address.name}:{port}/ (Ctrl-C to end)")
            server.run(sockets=[opened])
    code = stopping.stopped.code if stopping.stopped else DONE
    return DONE if code == INTERRUPTED else code
