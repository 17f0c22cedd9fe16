"""The page on loopback: an address with a secret in it, and nothing for anyone who does not know it.

Pages of other sites are kept out: a foreign Host (a name that was made to point here) or a foreign Origin is refused.
"""

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import sys
import webbrowser
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from highrank.errors import UserError
from highrank.explore.explorer import Explorer
from highrank.explore.page import mount_page

__all__ = ["listen", "make_app", "open_browser", "serve"]

HOST = "127.0.0.1"
TOKEN_BYTES = 24
CLOSING_S = 1  # a page that is open keeps a connection, which does not end by itself

# The page may load from its own address only, and no other page may hold it in a frame.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0 takes a free one. Raises UserError, naming the port, if it is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere this would let two servers share a port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            said = "is in use; give another one, or leave out --port to take a free one"
        else:
            said = f"cannot be used ({error.strerror})"
        raise UserError(f"port {port} {said}") from error
    return listening


def make_app(explorer: Explorer, token: str) -> FastAPI:
    """The page under /TOKEN; all else is not found, but for an icon that is empty."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_SameOrigin)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    # Browsers ask for it at the root, and would write an error into the console of the page.
    app.get("/favicon.ico")(lambda: Response(status_code=204))
    mount_page(app, explorer, f"/{token}")
    return app


def serve(explorer: Explorer, listening: socket.socket, *, browser: bool) -> int:
    """Print the address and answer until Ctrl-C (returns 0) or SIGTERM (returns 143)."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    address = f"http://{HOST}:{listening.getsockname()[1]}/{token}/"
    config = uvicorn.Config(
        make_app(explorer, token),
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=CLOSING_S,
    )
    server = _Server(config, explorer)
    print(address, flush=True)  # it listens already: a browser that is faster than we are waits
    if browser:
        open_browser(address)
    asyncio.run(server.serve(sockets=[listening]))
    return 128 + server.stopped_by if server.stopped_by == signal.SIGTERM else 0


def open_browser(address: str) -> bool:
    """Show the page, where there is a display: without one Python would start a browser for text in the terminal."""
    display = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return display and webbrowser.open(address)


class _Server(uvicorn.Server):
    """Ends at the first signal, as soon as work on a text can stop, and remembers which one it was.

    (uvicorn's own would raise it again.) A second one ends the process at once: nothing is being written.
    """

    stopped_by = 0

    def __init__(self, config: uvicorn.Config, explorer: Explorer) -> None:
        super().__init__(config)
        self._explorer = explorer

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # that pages were open is no error
        self._explorer.close()
        self.stopped_by = sig
        self.should_exit = True


class _SameOrigin:
    """Refuses requests that a page of another origin makes, and says of every answer what it may be used for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        foreign = origin is not None and origin != f"http://{headers.get('host')}"
        if foreign or headers.get("sec-fetch-site") == "cross-site":
            await PlainTextResponse("not from another site", status_code=403)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)
