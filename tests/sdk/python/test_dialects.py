"""OpenAI's own Python client against models of Anthropic and Google, which it cannot tell from OpenAI's.

Runs under tests/sdk/stage.py. The scripted providers refuse what real ones refuse, above all a history whose signed
thoughts are not what they sent.
"""

import base64
import json
import os
import unittest

import openai
import pydantic

BASE_URL = os.environ["TOLLGATE_BASE_URL"]
KEYS = json.loads(os.environ["TOLLGATE_KEYS"])
MODELS = ("claude", "gemini")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
    for name in ("get_weather", "get_time")
]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100
THOUGHTS = ["Which city?\nThe \"first\" one.", "Now the time… ⏱", "That is enough to answer."]


class Person(pydantic.BaseModel):
    name: str
    born: int


def ask(model, turns, stream=False, **more):
    """A completion, whole or added up from a stream by the SDK's own helper."""
    chat = openai.OpenAI(base_url=BASE_URL, api_key=KEYS["good"], max_retries=0).chat.completions
    if not stream:
        return chat.create(model=model, messages=turns, **more)
    with chat.stream(model=model, messages=turns, stream_options={"include_usage": True}, **more) as events:
        return events.get_final_completion()


def say(text):
    return [{"role": "user", "content": text}]


def result(call, text):
    return {"role": "tool", "tool_call_id": call.id, "content": text}


def ways(*models):
    """Each model, whole and streamed."""
    return [(model, stream) for model in models or MODELS for stream in (False, True)]


class Dialects(unittest.TestCase):
    def test_two_tools_and_their_results(self):
        for model, stream in ways():
            with self.subTest(model=model, stream=stream):
                answer = ask(model, say("Weather and time?"), stream, tools=TOOLS)
                message = answer.choices[0].message
                self.assertEqual((message.content, answer.choices[0].finish_reason), ("Let me see.", "tool_calls"))
                self.assertEqual([call.function.name for call in message.tool_calls], ["get_weather", "get_time"])
                self.assertEqual([json.loads(call.function.arguments) for call in message.tool_calls], [{"city": "Malmö"}] * 2)
                self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (12, 5))
                results = [result(call, text) for call, text in zip(message.tool_calls, ("14 °C", "noon"))]
                after = ask(model, [*say("Weather and time?"), message, *results], stream, tools=TOOLS)
                self.assertEqual(after.choices[0].message.content, "You sent: 14 °C | noon")
                self.assertEqual(after.choices[0].finish_reason, "stop")

    def test_an_image(self):
        for model, stream in ways():
            with self.subTest(model=model, stream=stream):
                uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
                parts = [{"type": "text", "text": "See: "}, {"type": "image_url", "image_url": {"url": uri}}]
                answer = ask(model, [{"role": "user", "content": parts}], stream)
                self.assertEqual(answer.choices[0].message.content, "See: [image/png 25608 bytes]")

    def test_a_schema_parsed_by_the_helper(self):
        chat = openai.OpenAI(base_url=BASE_URL, api_key=KEYS["good"]).chat.completions
        for model in (*MODELS, "claude-older"):
            with self.subTest(model=model):
                answer = chat.parse(model=model, messages=say("Who?"), response_format=Person)
                self.assertEqual(answer.choices[0].message.parsed, Person(name="Ada", born=1815))
                self.assertEqual(answer.choices[0].finish_reason, "stop")
                with chat.stream(model=model, messages=say("Who?"), response_format=Person) as events:
                    streamed = events.get_final_completion()
                self.assertEqual(streamed.choices[0].message.parsed, Person(name="Ada", born=1815))

    def test_a_loop_of_three_turns_with_its_signatures(self):
        for model, stream in ways():
            with self.subTest(model=model, stream=stream):
                turns = say("Think of the weather.")
                for number, thought in enumerate(THOUGHTS):
                    answer = ask(model, turns, stream, tools=TOOLS, reasoning_effort="high")
                    message = answer.choices[0].message
                    self.assertEqual(message.reasoning_content, thought)
                    calls = message.tool_calls or []
                    self.assertEqual(len(calls), 0 if number == 2 else 1)
                    turns += [message, *(result(call, "14 °C") for call in calls)]
                self.assertEqual(message.content, "Signed, all of it.")

    def test_gemini_is_reminded_of_what_a_client_drops(self):
        for model, stream in ways("gemini"):
            with self.subTest(model=model, stream=stream):
                turns = say("Think of the weather.")
                for _ in THOUGHTS:
                    message = ask(model, turns, stream, tools=TOOLS, reasoning_effort="high").choices[0].message
                    known = [{"id": c.id, "type": "function", "function": c.function.model_dump()} for c in message.tool_calls or []]
                    known = [{**c, "function": {key: c["function"][key] for key in ("name", "arguments")}} for c in known]
                    turns += [{"role": "assistant", "content": message.content, "tool_calls": known}] if known else []
                    turns += [result(call, "14 °C") for call in message.tool_calls or []]
                self.assertEqual(message.content, "Signed, all of it.")

    def test_a_changed_signature_is_refused_in_the_providers_words(self):
        for model, stream in ways():
            with self.subTest(model=model, stream=stream):
                message = ask(model, say("Think."), stream, tools=TOOLS, reasoning_effort="high").choices[0].message
                changed = message.model_dump_json(exclude_none=True).replace("++++", "+++/", 1)
                with self.assertRaises(openai.BadRequestError) as caught:
                    turns = [*say("Think."), json.loads(changed), result(message.tool_calls[0], "x")]
                    ask(model, turns, stream, tools=TOOLS, reasoning_effort="high")
                self.assertRegex(caught.exception.message, "thinking blocks|thought_signature")


if __name__ == "__main__":
    unittest.main()
