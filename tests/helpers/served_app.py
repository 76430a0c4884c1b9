"""An application behind a real port, in a thread of the test."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from tests.conftest import wait_until


@contextlib.contextmanager
def served_app(app: Any) -> Iterator[int]:
    """Serve an ASGI application on a free port of this machine, and yield the port."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=lambda: server.run(sockets=[opened]))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield opened.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
