"""A provider that speaks OpenAI's, Anthropic's and Gemini's dialects, small and scripted by the request, for the SDK tests.

What it answers depends on what it is asked: tools are called, images are measured, `n` and `logprobs` are honoured. A last
message `fail:STATUS` fails with that status, `fail:A,B` with each of them once and then answers; `break` breaks a stream off in its middle. What the other two dialects say is in
messages.py and generate.py. Only the standard library.
"""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import generate
import messages
from scripts import Refused

CREDENTIAL = "sk-of-the-provider"
WORDS = ["Hello", " there", ", friend", "."]


class Provider(ThreadingHTTPServer):
    """Listens on a free port of loopback once `start` is called."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.counts = {}
        self.lock = threading.Lock()

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def count(self, asked):
        """How often the same was asked before."""
        with self.lock:
            before = self.counts.get(asked, 0)
            self.counts[asked] = before + 1
        return before

    @property
    def base_url(self):
        """Where all of it is; OpenAI's dialect is below /v1."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/messages":
            return self.anthropic(request)
        if self.path.startswith("/v1beta/models/"):
            return self.gemini(request)
        if self.headers.get("authorization") != f"Bearer {CREDENTIAL}":
            return self.fail(401, "the relay sent the wrong credential")
        if self.path != "/v1/chat/completions":
            return self.fail(404, f"no such path: {self.path}")
        asked = text_of(request["messages"][-1])
        if asked.startswith("fail:"):
            statuses = [int(status) for status in asked[len("fail:"):].split(",")]
            count = self.server.count(asked)
            if len(statuses) == 1 or count < len(statuses):
                return self.fail(statuses[count % len(statuses)], "scripted to fail")
        choices = [choice(request, index, asked) for index in range(request.get("n") or 1)]
        usage = {"prompt_tokens": 12, "completion_tokens": 5 * len(choices), "total_tokens": 12 + 5 * len(choices)}
        if request.get("stream"):
            self.stream(request, choices, usage, breaks_off=asked == "break")
        else:
            self.answer(200, {**envelope(request, "chat.completion"), "choices": choices, "usage": usage})
        return None

    def anthropic(self, request):
        if self.headers.get("x-api-key") != CREDENTIAL or self.headers.get("anthropic-version") != "2023-06-01":
            return self.answer(401, messages.error(401, "the relay sent the wrong credential"))
        try:
            content, stop = messages.answer(request)
        except Refused as refused:
            return self.answer(400, messages.error(400, str(refused)))
        if not request.get("stream"):
            return self.answer(200, messages.whole(request, content, stop))
        self.begin_stream()
        for event in messages.events(request, content, stop):
            self.event(json.dumps(event, ensure_ascii=False), f"event: {event['type']}\n")
        return self.wfile.write(b"0\r\n\r\n")

    def gemini(self, request):
        if self.headers.get("x-goog-api-key") != CREDENTIAL:
            return self.answer(401, generate.error(401, "the relay sent the wrong credential"))
        try:
            parts = generate.answer(request)
        except Refused as refused:
            return self.answer(400, generate.error(400, str(refused)))
        if not self.path.endswith(":streamGenerateContent?alt=sse"):
            return self.answer(200, generate.whole(parts))
        self.begin_stream()
        for event in generate.events(parts):
            self.event(json.dumps(event, ensure_ascii=False), end="\r\n\r\n")
        return self.wfile.write(b"0\r\n\r\n")

    def begin_stream(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def stream(self, request, choices, usage, breaks_off):
        self.begin_stream()
        head = envelope(request, "chat.completion.chunk")
        for delta, index, logprobs, finish in deltas(choices):
            if breaks_off and finish:
                self.close_connection = True
                return
            piece = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            self.event(json.dumps({**head, "choices": [piece]}))
        if (request.get("stream_options") or {}).get("include_usage"):
            self.event(json.dumps({**head, "choices": [], "usage": usage}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data, name="", end="\n\n"):
        event = f"{name}data: {data}{end}".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def fail(self, status, message):
        kind = "invalid_request_error" if status == 400 else "some_error"
        self.answer(status, {"error": {"message": message, "type": kind, "param": None, "code": "scripted"}})

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def envelope(request, kind):
    return {"id": "chatcmpl-sdk", "object": kind, "created": 1700000000, "model": request["model"]}


def text_of(message):
    """The text of a message, with each image's size in place of the image."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else image(part["image_url"]["url"]) for part in content)


def image(url):
    header, _, data = url.partition(",")
    return f"[{header} {len(base64.b64decode(data, validate=True))} bytes]"


def choice(request, index, asked):
    message = {"role": "assistant", "content": "".join(WORDS), "refusal": None}
    finish = "stop"
    if request.get("tools") and request["messages"][-1]["role"] == "user":
        names = [tool["function"]["name"] for tool in request["tools"]]
        message["content"] = None
        message["tool_calls"] = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": '{"city": "Malmö"}'}}
            for number, name in enumerate(names)
        ]
        finish = "tool_calls"
    elif request["messages"][-1]["role"] == "tool" or "[data:" in asked:
        message["content"] = f"You sent: {asked}"
    logprobs = None
    if request.get("logprobs"):
        tokens = [{"token": word, "logprob": -0.25, "bytes": list(word.encode()), "top_logprobs": []} for word in WORDS]
        logprobs = {"content": tokens, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def deltas(choices):
    """The choices as a stream has them: interleaved, tool arguments in two pieces, the finish last."""
    for whole in choices:
        index, message, logprobs = whole["index"], whole["message"], whole["logprobs"]
        yield {"role": "assistant", "content": "" if message["content"] else None}, index, None, None
        for number, call in enumerate(message.get("tool_calls") or []):
            arguments = call["function"]["arguments"]
            first = {**call, "index": number, "function": {**call["function"], "arguments": ""}}
            yield {"tool_calls": [first]}, index, None, None
            for piece in (arguments[:4], arguments[4:]):
                yield {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, index, None, None
    for position in range(len(WORDS)):
        for whole in choices:
            if whole["message"]["content"] == "".join(WORDS):
                tokens = whole["logprobs"]
                logprobs = tokens and {"content": [tokens["content"][position]], "refusal": None}
                yield {"content": WORDS[position]}, whole["index"], logprobs, None
            elif whole["message"]["content"] and position == 0:
                yield {"content": whole["message"]["content"]}, whole["index"], None, None
    for whole in choices:
        yield {}, whole["index"], None, whole["finish_reason"]
