"""Stand-in for a server with OpenAI's completions, such as vLLM's, answered by transformers.

    MODELS=ADDRESS python -m tests.standins.completions_server --model FOLDER --port PORT
        [--served-model-name NAME] [--lora-modules NAME=FOLDER] [other options of vLLM's server]

It serves the model as NAME (`base`), and each adapter under its name. The models are those of
`tests.standins.models`, at an address. A fault (FAULT in the environment of the program) makes it
misbehave:

* `ignores`: it answers for the adapter as for the base;
* `half`: it stops at the twelfth completion;
* `slow`: each answer takes a moment;
* `one`: it refuses one prompt, and only once;
* `tokens`: it says other tokens than were sent;
* `adds`: it reads one token more than was sent;
* `vocabulary`: it has other words for its tokens;
* `texts`: it takes no token ids;
* `generates`: it gives no log-likelihoods of prompts;
* `echo`: it gives them with echo alone.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import numpy as np
from tokenizers import Tokenizer

from tests.standins.json_handler import Json, JsonHandler
from tests.standins.models import LogProbabilities, models_at

END = 2


@dataclass
class StandIn:
    """A model, and an adapter under a name of its own, as a server answers for them.

    Attributes:
        model: folder of the model.
        adapter: folder of the adapter; empty if there is none.
        ask: function that gives a model's log-probabilities.
        adapter_name: name of the adapter.
        name: name of the model.
        fault: name of the fault; empty if there is none.
        key: key that has to be sent.
    """

    model: str
    adapter: str
    ask: LogProbabilities
    adapter_name: str = ""
    name: str = "base"
    fault: str = ""
    key: str = ""
    lock: Lock = field(default_factory=Lock)
    completions: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(Path(self.model) / "tokenizer.json"))

    def server(self, port: int) -> ThreadingHTTPServer:
        """Return a server on the loopback interface."""
        handler = type("OfStandIn", (Handler,), {"standin": self})
        return ThreadingHTTPServer(("127.0.0.1", port), handler)

    @property
    def names(self) -> list[str]:
        return [self.name, *([self.adapter_name] if self.adapter else [])]

    def answer(self, path: str, authorization: str | None, body: Json) -> tuple[int, Json]:
        """Return the status and the content of an answer; status 0 to stop."""
        if self.key and authorization != f"Bearer {self.key}":
            return refusal(401, "wrong key")
        if path != "/v1/completions":
            return refusal(404, "no such address")
        if body["model"] not in self.names:
            return refusal(404, "no such model")
        if self.fault == "texts":
            return refusal(400, "prompt has to be a text")
        with self.lock:
            self.completions += 1
            if self.fault == "half" and self.completions >= 12:
                return 0, {}
            if self.fault == "slow":
                time.sleep(0.05)
            if self.fault == "one" and self.completions > 10 and not self.refused:
                self.refused += 1
                return refusal(400, "too long for this server")
            if body.get("echo") and self.fault == "generates":
                return refusal(400, "echo is not supported")
            numbered = reversed([*enumerate(body["prompt"])])
            choices = [{"index": n, **self.choice(body, ids)} for n, ids in numbered]
        read = sum(map(len, body["prompt"])) + (self.fault == "adds")
        return 200, {"choices": choices, "usage": {"prompt_tokens": read}}

    def log_probabilities(self, model: str, ids: list[int], rows: int) -> np.ndarray:
        is_base = model == self.name or self.fault == "ignores"
        return self.ask(self.model, "" if is_base else self.adapter, ids, rows)

    def word(self, token: int) -> str:
        word: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return word + ("x" if self.fault == "vocabulary" else "")

    def choice(self, body: Json, prompt: list[int]) -> Json:
        table = self.log_probabilities(body["model"], prompt, len(prompt))
        given: Json = {"finish_reason": "length"}
        if "prompt_logprobs" in body and self.fault not in ("echo", "generates"):
            given["prompt_logprobs"] = [None] + [
                {
                    str(shown): {"logprob": float(row[shown]), "decoded_token": self.word(shown)}
                    for shown in {token + (self.fault == "tokens"), int(row.argmax())}
                }
                for row, token in zip(table, prompt[1:], strict=False)
            ]
        if body.get("echo"):
            own = [float(row[token]) for row, token in zip(table, prompt[1:], strict=False)]
            top = [{self.word(int(row.argmax())): float(row.max())} for row in table[:-1]]
            given["logprobs"] = {
                "tokens": [self.word(token) for token in prompt],
                "token_logprobs": [None, *own],
                "top_logprobs": [None, *top],
            }
        ids = list(prompt)
        for _ in range(body["max_tokens"]):
            token = int(self.log_probabilities(body["model"], ids, 1)[0].argmax())
            if token == END:
                given["finish_reason"] = "stop"
                break
            ids.append(token)
            text = self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
            if any(stop in text for stop in body.get("stop", [])):
                given["finish_reason"] = "stop"
                break
        given["text"] = self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        return given


class Handler(JsonHandler):
    standin: StandIn

    def get(self) -> None:
        self.reply(200, {"data": [{"id": name} for name in self.standin.names]})

    def post(self, body: Json) -> None:
        status, value = self.standin.answer(self.path, self.headers.get("Authorization"), body)
        if status:
            self.reply(status, value)
        else:
            self.close_connection = True
            Thread(target=self.stop).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def refusal(status: int, message: str) -> tuple[int, Json]:
    return status, {"error": {"message": message}}


if __name__ == "__main__":
    options = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    name, _, path = options.get("--lora-modules", "").partition("=")
    standin = StandIn(
        options["--model"],
        path,
        models_at(os.environ["MODELS"]),
        adapter_name=name,
        name=options.get("--served-model-name", "base"),
        fault=os.environ.get("FAULT", ""),
    )
    standin.server(int(options["--port"])).serve_forever()
