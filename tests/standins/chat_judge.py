"""Stand-in for a server with OpenAI's chat completions whose model judges answers by a rule."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from threading import Thread

from tests.standins.json_handler import Json, JsonHandler

QUOTED = re.compile(r"<(Request|Answer A|Answer B) (\w{8})>\n(.*?)\n</\1 \2>", re.DOTALL)
# From request and both answers to the reply.
Rule = Callable[[str, str, str], str]


@dataclass
class ChatJudge:
    """A judge, with what it was asked: request and answers in the order in which it read them."""

    rule: Rule
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def answer(self, path: str, body: Json) -> tuple[int, Json]:
        if path != "/v1/chat/completions" or body["model"] != "judge":
            return 404, {"error": {"message": "no such address or model"}}
        [turn] = body["messages"]
        texts = {name: text for name, _, text in QUOTED.findall(turn["content"])}
        given = texts["Request"], texts["Answer A"], texts["Answer B"]
        self.asked.append(given)
        return 200, {"choices": [{"message": {"content": self.rule(*given)}}]}


@contextmanager
def served(judge: ChatJudge) -> Iterator[str]:
    """Serve a judge on the loopback interface, and yield its address."""

    class Handler(JsonHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # a head and a body that are sent apart wait for one another

        def post(self, body: Json) -> None:
            judge.keys.add(self.headers.get("Authorization"))
            self.reply(*judge.answer(self.path, body))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
