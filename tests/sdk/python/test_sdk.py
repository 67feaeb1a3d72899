"""OpenAI's own Python client against the relay: everything that a program does with it, by its own classes.

Runs under tests/sdk/stage.py, which starts the relay and sets TOLLGATE_BASE_URL, TOLLGATE_KEYS and TOLLGATE_STORE.
"""

import asyncio
import base64
import hashlib
import json
import os
import sqlite3
import time
import unittest
import uuid

import openai

BASE_URL = os.environ["TOLLGATE_BASE_URL"]
KEYS = json.loads(os.environ["TOLLGATE_KEYS"])
STORE = os.environ["TOLLGATE_STORE"]
MODEL = "test-model"
SLASHED = "vendor/family/model-1"
TRANSLATED = ["claude", "claude-older", "gemini"]
TEXT = "Hello there, friend."
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
    for name in ("get_weather", "get_time")
]


def client(key="good", **options):
    return openai.OpenAI(base_url=BASE_URL, api_key=KEYS.get(key, key), **options)


def say(text):
    return [{"role": "user", "content": text}]


def bills(key, count):
    """Status and cost of each request of a key, once there are so many, and the amounts of its entries in the ledger."""
    digest = hashlib.sha256(KEYS[key].encode()).hexdigest()
    of_key = "WHERE key_id = (SELECT id FROM api_keys WHERE digest = ?) ORDER BY seq"
    end = time.monotonic() + 20
    while True:
        store = sqlite3.connect(STORE)
        try:
            # Usage and entry are committed together, so what is read last has at least what belongs to the first.
            usage = store.execute(f"SELECT status, cost_nano_usd FROM usage_records {of_key}", [digest]).fetchall()
            entries = store.execute(f"SELECT amount_nano_usd FROM ledger_entries {of_key}", [digest]).fetchall()
        finally:
            store.close()
        if len(usage) >= count or time.monotonic() > end:
            return usage, [amount for (amount,) in entries]
        time.sleep(0.05)


class Counting:
    """A client that counts the requests it really sends, its own retries included."""

    def __init__(self, key="good", **options):
        self.count = 0
        http = openai.DefaultHttpxClient(event_hooks={"request": [self.see]})
        self.client = client(key, http_client=http, **options)

    def see(self, _request):
        self.count += 1


class Chat(unittest.TestCase):
    def test_chat(self):
        answer = client().chat.completions.create(model=MODEL, messages=say("Hi"))
        self.assertEqual(answer.choices[0].message.content, TEXT)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (12, 5))

    def test_raw_response_has_the_headers(self):
        raw = client().chat.completions.with_raw_response.create(model=MODEL, messages=say("Hi"))
        self.assertTrue(raw.headers["x-request-id"])
        self.assertEqual(raw.headers["x-ratelimit-limit-requests"], "100000")
        self.assertEqual(raw.parse()._request_id, raw.headers["x-request-id"])

    def test_stream(self):
        chunks = list(client().chat.completions.create(model=MODEL, messages=say("Hi"), stream=True))
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), TEXT)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")
        self.assertTrue(all(chunk.usage is None for chunk in chunks), "nobody asked for usage")

    def test_stream_with_usage(self):
        options = {"include_usage": True}
        chunks = list(client().chat.completions.create(model=MODEL, messages=say("Hi"), stream=True, stream_options=options))
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.total_tokens, 17)

    def test_stream_helper(self):
        with client().chat.completions.stream(model=MODEL, messages=say("Hi")) as stream:
            self.assertEqual(stream.get_final_completion().choices[0].message.content, TEXT)

    def test_async_clients_at_once(self):
        async def ask_all():
            async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEYS["good"]) as many:
                async def ask():
                    stream = await many.chat.completions.create(model=MODEL, messages=say("Hi"), stream=True)
                    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                return await asyncio.gather(*(ask() for _ in range(20)))
        self.assertEqual(asyncio.run(ask_all()), [TEXT] * 20)

    def test_tools(self):
        answer = client().chat.completions.create(model=MODEL, messages=say("Weather?"), tools=TOOLS)
        calls = answer.choices[0].message.tool_calls
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        self.assertEqual([call.function.name for call in calls], ["get_weather", "get_time"])
        self.assertEqual(json.loads(calls[0].function.arguments), {"city": "Malmö"})
        results = [{"role": "tool", "tool_call_id": call.id, "content": "14 °C"} for call in calls]
        turns = [*say("Weather?"), answer.choices[0].message, *results]
        after = client().chat.completions.create(model=MODEL, messages=turns, tools=TOOLS)
        self.assertEqual(after.choices[0].message.content, "You sent: 14 °C")

    def test_tools_in_a_stream(self):
        with client().chat.completions.stream(model=MODEL, messages=say("Weather?"), tools=TOOLS) as stream:
            calls = stream.get_final_completion().choices[0].message.tool_calls
        self.assertEqual([call.function.name for call in calls], ["get_weather", "get_time"])
        self.assertEqual([json.loads(call.function.arguments) for call in calls], [{"city": "Malmö"}] * 2)

    def test_idempotency_key(self):
        create = client().chat.completions.with_raw_response.create
        header = {"Idempotency-Key": str(uuid.uuid4())}
        first, again = (create(model=MODEL, messages=say("Hi"), extra_headers=header) for _ in range(2))
        self.assertIsNone(first.headers.get("idempotent-replayed"))
        self.assertEqual(again.headers["idempotent-replayed"], "true")
        self.assertEqual((again.text, again.parse().choices[0].message.content), (first.text, TEXT))
        self.assertNotEqual(again.headers["x-request-id"], first.headers["x-request-id"])
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model=MODEL, messages=say("Hello"), extra_headers=header)
        self.assertEqual(caught.exception.code, "idempotency_key_reused")

    def test_idempotency_key_of_a_stream(self):
        header = {"Idempotency-Key": str(uuid.uuid4())}
        for _ in range(2):
            chunks = list(client().chat.completions.create(model=MODEL, messages=say("Hi"), stream=True, extra_headers=header))
            self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), TEXT)

    def test_image_as_data_uri(self):
        for size in (100, 3_000_000):
            uri = "data:image/png;base64," + base64.b64encode(bytes(size)).decode()
            parts = [{"type": "text", "text": "See: "}, {"type": "image_url", "image_url": {"url": uri}}]
            answer = client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
            self.assertEqual(answer.choices[0].message.content, f"You sent: See: [data:image/png;base64 {size} bytes]")

    def test_n(self):
        answer = client().chat.completions.create(model=MODEL, messages=say("Hi"), n=3)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        texts = {0: "", 1: "", 2: ""}
        for chunk in client().chat.completions.create(model=MODEL, messages=say("Hi"), n=3, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        self.assertEqual(texts, {0: TEXT, 1: TEXT, 2: TEXT})

    def test_logprobs(self):
        answer = client().chat.completions.create(model=MODEL, messages=say("Hi"), logprobs=True, top_logprobs=2)
        self.assertEqual([token.logprob for token in answer.choices[0].logprobs.content], [-0.25] * 4)
        chunks = client().chat.completions.create(model=MODEL, messages=say("Hi"), logprobs=True, stream=True)
        seen = [chunk.choices[0].logprobs.content[0].token for chunk in chunks if chunk.choices[0].logprobs]
        self.assertEqual("".join(seen), TEXT)


class Models(unittest.TestCase):
    def test_list(self):
        models = client().models.list()
        self.assertEqual([model.id for model in models], [MODEL, SLASHED, *TRANSLATED])
        self.assertEqual(models.data[0].owned_by, "tests")
        self.assertEqual([model.id for model in client("narrow").models.list()], [SLASHED])

    def test_retrieve(self):
        for name in (MODEL, SLASHED):
            model = client().models.retrieve(name)
            self.assertEqual((model.id, model.object), (name, "model"))
            self.assertEqual(model.context_window, 128_000)

    def test_retrieve_what_is_not_there(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client().models.retrieve("no/such/model")
        self.assertEqual(caught.exception.code, "model_not_found")


class Errors(unittest.TestCase):
    def fails(self, kind, code, key="good", model=MODEL, text="Hi", requests=1, **more):
        """Asks, and asserts the SDK's exception, its code, and how many requests it took."""
        counting = Counting(key, **more)
        with self.assertRaises(kind) as caught:
            counting.client.chat.completions.create(model=model, messages=say(text))
        error = caught.exception
        self.assertIs(type(error), kind)
        self.assertEqual(error.code, code)
        self.assertTrue(error.message and error.request_id)
        self.assertEqual(counting.count, requests, "requests sent, retries included")
        return error

    def test_authentication_is_not_retried(self):
        for key in ("revoked", "tg_live_nonsense", "sk-of-somebody-else"):
            error = self.fails(openai.AuthenticationError, "invalid_api_key", key=key)
            self.assertEqual((error.status_code, error.type), (401, "authentication_error"))

    def test_no_credit_is_not_retried(self):
        error = self.fails(openai.APIStatusError, "insufficient_credits", key="poor")
        self.assertEqual((error.status_code, error.type), (402, "insufficient_quota"))

    def test_forbidden_model(self):
        self.fails(openai.PermissionDeniedError, "model_not_allowed", key="narrow")

    def test_unknown_model_is_not_retried(self):
        error = self.fails(openai.NotFoundError, "model_not_found", model="gpt-nonesuch")
        self.assertEqual(error.param, "model")

    def test_unknown_path(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client().embeddings.create(model=MODEL, input="x", encoding_format="float")
        self.assertEqual(caught.exception.code, "unknown_url")

    def test_bad_request(self):
        self.fails(openai.BadRequestError, "scripted", text="fail:400")
        with self.assertRaises(openai.BadRequestError) as caught:
            client().chat.completions.create(model=MODEL, messages=[])
        self.assertEqual(caught.exception.param, "messages")

    def test_rate_limit(self):
        error = self.fails(openai.RateLimitError, "rate_limit_exceeded", key="spent", max_retries=0)
        self.assertLessEqual(int(error.response.headers["retry-after"]), 60)

    def test_upstream_failures_are_retried(self):
        for status, code in ((500, "upstream_error"), (401, "upstream_auth"), (503, "upstream_error")):
            # The first request and one retry: this is how the test knows that its counter counts retries.
            error = self.fails(openai.InternalServerError, code, text=f"fail:{status}", requests=2, max_retries=1)
            self.assertEqual((error.status_code, error.type), (502, "upstream_error"))

    def test_retries_make_one_entry_and_one_charge(self):
        counting = Counting("retried", max_retries=2)
        answer = counting.client.chat.completions.create(model=MODEL, messages=say("fail:500,503"))
        self.assertEqual((answer.choices[0].message.content, counting.count), (TEXT, 3))
        # 12 tokens in for 1,000 nano-USD each, 5 out for 2,000.
        usage, entries = bills("retried", 3)
        self.assertEqual((usage, entries), ([(502, 0), (502, 0), (200, 22_000)], [-22_000]))

    def test_a_broken_stream_raises(self):
        with self.assertRaises(openai.APIError) as caught:
            for _ in client().chat.completions.create(model=MODEL, messages=say("break"), stream=True):
                pass
        self.assertEqual(caught.exception.code, "upstream_truncated")


if __name__ == "__main__":
    unittest.main()
