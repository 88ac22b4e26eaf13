"""The health page: how many studies are where, without a word of whose they are."""

from __future__ import annotations

import contextlib
import html
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sacl.errors import ConfigError

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="10">
<title>sacl node</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ margin: 2rem auto; max-width: 40rem; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; padding: .3rem .5rem; border-bottom: 1px solid #8886 }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
.bad {{ color: #c22; font-weight: bold }} .ok {{ color: #283; font-weight: bold }}
</style><h1>sacl node</h1><p class="{mood}">{status}</p><table>{rows}</table>{aside}</html>
"""


@contextlib.contextmanager
def health_page(state: Callable[[], dict[str, Any]], host: str, port: int) -> Iterator[None]:
    """Serve `/health` as JSON and `/` as a page, in a thread, while the body runs.

    The status is 200 while all is well, 503 where something is not.

    Raises:
        ConfigError: the port is taken.
    """

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            now = state()
            kind, body = "application/json", json.dumps(now)
            if self.path == "/":
                kind, body = "text/html; charset=utf-8", as_html(now)
            elif self.path != "/health":
                self.send_error(404)
                return
            self.send_response(200 if now["status"] == "ok" else 503)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: monitors ask every few seconds."""

    try:
        server = ThreadingHTTPServer((host, port), Answer)
    except OSError as error:
        raise ConfigError(f"serve: port {port} of {host}: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def as_html(state: dict[str, Any]) -> str:
    """Return the state as a page."""
    disk = state["disk"]
    numbers = {
        **{f"studies {name}": count for name, count in state["studies"].items()},
        "images that came too late": state["late"],
        "disk, GB": f"{disk['used_gb']:.2f} of {disk['limit_gb']:.2f}",
        "up, hours": f"{state['up_s'] / 3600:.1f}",
        "model": state["model"],
    }
    rows = "".join(
        f'<tr><td>{html.escape(name)}<td class="number">{html.escape(str(value))}'
        for name, value in numbers.items()
    )
    aside = "".join(
        f"<tr><td>{html.escape(study)}<td>{html.escape(reason)}" for study, reason in state["aside"]
    )
    if aside:
        aside = f"<h2>Set aside</h2><table><tr><th>study<th>why{aside}</table>"
    is_well = state["status"] == "ok"
    return _PAGE.format(
        mood="ok" if is_well else "bad", status=html.escape(state["status"]), rows=rows, aside=aside
    )
