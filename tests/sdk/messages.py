"""Anthropic's Messages, scripted by the request, and strict about what real ones are strict about.

Every tool call needs its result in the next turn. While thinking, a turn with a tool call must begin with the thinking
blocks that it was sent with, not a byte of them changed.
"""

import base64
import json

from scripts import CITY, LOOP_TURNS, PERSON, THOUGHTS, need, pieces, signature

USAGE = {"input_tokens": 12, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 5}


def answer(request):
    """The content blocks of the answer, and why it stops."""
    need(request.get("max_tokens", 0) > 0, "max_tokens: Field required")
    messages = request["messages"]
    need([m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"], "messages: roles must alternate")
    turns = [blocks(message) for message in messages]
    for asked, answered in zip(turns[1::2], turns[2::2]):
        calls = [block["id"] for block in asked if block["type"] == "tool_use"]
        results = [block["tool_use_id"] for block in answered if block["type"] == "tool_result"]
        need(calls == results, "messages: `tool_use` ids were found without `tool_result` blocks immediately after")
    if request.get("thinking", {}).get("type") in ("adaptive", "enabled"):
        return thinking_turn(turns)
    last = turns[-1]
    results = [text_of(block["content"]) for block in last if block["type"] == "tool_result"]
    if results:
        return [{"type": "text", "text": "You sent: " + " | ".join(results)}], "end_turn"
    schema = request.get("output_config", {}).get("format")
    if schema:
        need(schema["type"] == "json_schema" and schema["schema"]["additionalProperties"] is False, "output_config.format")
        return [{"type": "text", "text": PERSON}], "end_turn"
    tools = [tool["name"] for tool in request.get("tools", [])]
    choice = request.get("tool_choice", {})
    if choice.get("type") == "tool":
        need(choice["name"] in tools, "tool_choice: no such tool")
        return [tool_use(0, choice["name"], json.loads(PERSON))], "tool_use"
    if tools:
        return [{"type": "text", "text": "Let me see."}, *(tool_use(n, name, CITY) for n, name in enumerate(tools))], "tool_use"
    return [{"type": "text", "text": "".join(said(block) for block in last)}], "end_turn"


def thinking_turn(turns):
    for number, turn in enumerate(turns[1::2]):
        message = f"messages.{2 * number + 1}.content.0: thinking blocks in an assistant message cannot be modified"
        need(turn[:len(thoughts(number))] == thoughts(number), message)
    number = len(turns) // 2
    if number + 1 < LOOP_TURNS:
        return [*thoughts(number), tool_use(number, "get_weather", CITY)], "tool_use"
    return [*thoughts(number), {"type": "text", "text": "Signed, all of it."}], "end_turn"


def thoughts(number):
    told = {"type": "thinking", "thinking": THOUGHTS[number], "signature": signature(number)}
    # The second turn has one that nobody may read, as well.
    return [told, {"type": "redacted_thinking", "data": signature(10 + number)}] if number == 1 else [told]


def blocks(message):
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def text_of(content):
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def said(block):
    if block["type"] == "text":
        return block["text"]
    source = block["source"]
    need(block["type"] == "image" and source["type"] == "base64", "an image as base64")
    return f"[{source['media_type']} {len(base64.b64decode(source['data'], validate=True))} bytes]"


def tool_use(number, name, arguments):
    return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments}


def whole(request, content, stop):
    envelope = {"id": "msg_sdk", "type": "message", "role": "assistant", "model": request["model"]}
    return {**envelope, "content": content, "stop_reason": stop, "stop_sequence": None, "usage": USAGE}


def events(request, content, stop):
    """The answer as a stream: event names and data."""
    begun = {**whole(request, [], None), "usage": {**USAGE, "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    yield {"type": "ping"}
    for index, block in enumerate(content):
        yield {"type": "content_block_start", "index": index, "content_block": opening(block)}
        for delta in deltas(block):
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": 5}}
    yield {"type": "message_stop"}


def opening(block):
    empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}
    return {**block, **empty.get(block["type"], {})}


def deltas(block):
    if block["type"] == "text":
        return [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
    if block["type"] == "thinking":
        told = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
        return [*told, {"type": "signature_delta", "signature": block["signature"]}]
    if block["type"] == "tool_use":
        written = json.dumps(block["input"], ensure_ascii=False)
        return [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces(written)]]
    return []


def error(status, message):
    kind = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_sdk"}
