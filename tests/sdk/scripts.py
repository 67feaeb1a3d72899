"""What scripted providers of other dialects share: what they say, and how they refuse."""

import base64
import hashlib

CITY = {"city": "Malmö"}
PERSON = '{"name": "Ada", "born": 1815}'
THOUGHTS = ["Which city?\nThe \"first\" one.", "Now the time… ⏱", "That is enough to answer."]
LOOP_TURNS = 3


class Refused(Exception):
    """The request is at fault; answered with status 400 in the dialect's own words."""


def need(holds, message):
    if not holds:
        raise Refused(message)


def signature(turn):
    """A signature as long and as odd as real ones: base64 with its three odd characters, different for each turn."""
    return base64.b64encode(b"\xfb\xef\xbe" * 2 + hashlib.sha512(b"turn %d" % turn).digest() * 6).decode()


def pieces(text, length=7):
    return [text[at:at + length] for at in range(0, len(text), length)]
