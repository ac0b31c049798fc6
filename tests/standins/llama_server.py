"""Stand-in for llama.cpp's server: its addresses that the engine asks, answered by transformers.

    MODELS=ADDRESS python -m tests.standins.llama_server --model FOLDER/FILE --port PORT
        [other options]

The model of the folder is that of `tests.standins.models`, at an address.
FAULT in the environment makes it misbehave; it then answers by a fixed rule, without a model:

* `load`: it ends before the model is loaded;
* `crash`: it crashes then, unless weights are not repacked;
* `die`: it ends at the tenth completion;
* `long`: it refuses prompts of over 30 tokens;
* `busy`: it answers every other request with status 503;
* `tokens`: it answers with other tokens than those that are forced;
* `vocabulary`: it reads tokens otherwise;
* `no vocabulary`: it refuses to read them.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from tokenizers import Tokenizer

from tests.standins.json_handler import Json, JsonHandler
from tests.standins.models import models_at

FAULT = os.environ.get("FAULT", "")
END = 2
LOCK = Lock()
COUNTS = {"requests": 0, "completions": 0}
LogLikelihoods = Callable[[Sequence[int]], list[float]]


def of_model(folder: Path) -> LogLikelihoods:
    ask = models_at(os.environ["MODELS"])

    def next_token(ids: Sequence[int]) -> list[float]:
        return list(ask(str(folder), "", ids, 1)[0].tolist())

    return next_token


def of_rule(ids: Sequence[int]) -> list[float]:
    return [-float((token + len(ids)) % 50) for token in range(5000)]


class Handler(JsonHandler):
    def get(self) -> None:
        self.reply(200, {"status": "ok"})

    def post(self, body: Json) -> None:
        with LOCK:
            COUNTS["requests"] += 1
            if FAULT == "busy" and COUNTS["requests"] % 2:
                self.reply(503, {"error": {"message": "busy"}})
            elif self.path == "/detokenize" and FAULT == "no vocabulary":
                self.reply(400, {"error": {"message": "invalid tokens"}})
            elif self.path == "/detokenize":
                text = TOKENIZER.decode(body["tokens"], skip_special_tokens=False)
                self.reply(200, {"content": text + "?" if FAULT == "vocabulary" else text})
            else:
                self.complete(body)

    def complete(self, body: Json) -> None:
        COUNTS["completions"] += 1
        if FAULT == "die" and COUNTS["completions"] == 10:
            os._exit(9)
        if FAULT == "long" and len(body["prompt"]) > 30:
            self.reply(400, {"error": {"message": "the request exceeds the context"}})
            return
        ids, new, given, stop = list(body["prompt"]), [], [], "limit"
        for _ in range(body["n_predict"]):
            raw = next_token(ids)
            biased = list(raw)
            for token, bias in body.get("logit_bias", []):
                biased[token] += bias
            token, best = biased.index(max(biased)), raw.index(max(raw))
            if FAULT == "tokens" or not body["samplers"]:
                token = best + 1  # without a sampler, the real one draws any token
            given.append({"id": token, "logprob": raw[token], "top_logprobs": [{"id": best}]})
            if token == END:
                stop = "eos"
                break
            ids.append(token)
            new.append(token)
            if any(text in TOKENIZER.decode(new) for text in body.get("stop", [])):
                stop = "word"
                break
        self.reply(200, {"tokens": new, "completion_probabilities": given, "stop_type": stop})


if "--version" in sys.argv:
    print("version: a stand-in")
    sys.exit()
if FAULT == "crash" and "--no-repack" not in sys.argv:
    os.kill(os.getpid(), signal.SIGSEGV)
if FAULT == "load":
    print("error: unknown model architecture: 'mystery'")
    sys.exit(1)
options = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
folder = Path(options["--model"]).parent
TOKENIZER = Tokenizer.from_file(str(folder / "tokenizer.json"))
next_token = of_rule if FAULT else of_model(folder)
ThreadingHTTPServer(("127.0.0.1", int(options["--port"])), Handler).serve_forever()
