"""Requests and answers in JSON, for stand-ins of servers."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

Json = dict[str, Any]


class JsonHandler(BaseHTTPRequestHandler):
    """Handler that reads and writes JSON, and logs nothing."""

    def get(self) -> None:
        """Answer a request without a body."""
        raise NotImplementedError

    def post(self, body: Json) -> None:
        """Answer a request with a body."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer a GET request."""
        self.get()

    def do_POST(self) -> None:
        """Answer a POST request."""
        self.post(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, status: int, value: Json) -> None:
        """Send an answer."""
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""
