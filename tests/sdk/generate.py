"""Gemini's generateContent, scripted by the request, and strict about what real models are strict about.

Every call needs its response, in order and by name. While thinking, the call that was signed must come back with its
signature, not a byte of it changed.
"""

import base64

from scripts import CITY, LOOP_TURNS, PERSON, THOUGHTS, need, signature

USAGE = {"promptTokenCount": 12, "candidatesTokenCount": 5, "totalTokenCount": 17}


def answer(request):
    """The parts of the answer."""
    contents = request["contents"]
    roles = [content["role"] for content in contents]
    need(roles == ["user", "model"] * (len(roles) // 2) + ["user"], "Please ensure that roles alternate.")
    turns = [content["parts"] for content in contents]
    for asked, answered in zip(turns[1::2], turns[2::2]):
        calls = [part["functionCall"]["name"] for part in asked if "functionCall" in part]
        results = [part["functionResponse"]["name"] for part in answered if "functionResponse" in part]
        need(calls == results, "the number of function response parts is equal to the number of function call parts")
    settings = request.get("generationConfig", {})
    if settings.get("thinkingConfig", {}).get("includeThoughts"):
        return thinking_turn(turns)
    last = turns[-1]
    results = [part["functionResponse"]["response"] for part in last if "functionResponse" in part]
    if results:
        return [{"text": "You sent: " + " | ".join(str(next(iter(result.values()))) for result in results)}]
    if "responseJsonSchema" in settings or "responseSchema" in settings:
        need(settings.get("responseMimeType") == "application/json", "responseMimeType")
        return [{"text": PERSON}]
    names = [each["name"] for tool in request.get("tools", []) for each in tool["functionDeclarations"]]
    if names:
        return [{"text": "Let me see."}, *({"functionCall": {"name": name, "args": CITY}} for name in names)]
    return [{"text": "".join(said(part) for part in last)}]


def thinking_turn(turns):
    for number, turn in enumerate(turns[1::2]):
        signed = [part.get("thoughtSignature") for part in turn if "functionCall" in part]
        message = f"Function call is missing a thought_signature in functionCall parts (turn {number}): {signed}"
        need(signed == [signature(number)], message)
    number = len(turns) // 2
    thought = {"text": THOUGHTS[number], "thought": True}
    if number + 1 < LOOP_TURNS:
        return [thought, {"functionCall": {"name": "get_weather", "args": CITY}, "thoughtSignature": signature(number)}]
    return [thought, {"text": "Signed, all of it."}]


def said(part):
    if "text" in part:
        return part["text"]
    data = part["inlineData"]
    return f"[{data['mimeType']} {len(base64.b64decode(data['data'], validate=True))} bytes]"


def whole(parts, finish="STOP"):
    candidate = {"index": 0, "content": {"role": "model", "parts": parts}, **({"finishReason": finish} if finish else {})}
    return {"candidates": [candidate], "usageMetadata": USAGE, "modelVersion": "gemini-sdk", "responseId": "sdk"}


def events(parts):
    """The answer as a stream: a chunk for each part, the finish on one of its own."""
    for part in parts:
        yield whole([part], None)
    yield whole([{"text": ""}])


def error(status, message):
    word = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}.get(status, "INTERNAL")
    return {"error": {"code": status, "message": message, "status": word}}

