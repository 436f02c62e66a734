"""Seeded mutations of bytes and of text."""

from __future__ import annotations

import random
import re

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NUMBERS = (
    "nan", "NaN", "inf", "-inf", "1e999", "-1e999", "1e39", "1e-46", "1e-320", "-0", "-1", "0", "", "0x10", "1_000",
    "١٢",
    "9" * 5000, "0." + "3" * 3000, "2147483647", "2147483648", "-2147483649", "9223372036854775808", "1e9", "true",
    "null", "[]", "{}", '"5"', "=1+1", "1,5",
)  # fmt: skip
_WORDS = (
    "\x00", "\x1b]0;x\x07",
    "\udcff", "\ufeff", "\u202e", "\r", "\r\n", "\n\n", "\t", '"', "'", "\\", ",", ";", "[", "{",
    "=cmd|' /C calc'!A0", "../../x", "~nobody", "%s%n", "${HOME}", "a" * 300, "🙂" * 50, "NULL", "__proto__", "#", "]]",
    "[" * 1200, "{" * 1200, "a." * 1500 + "a = 1\n", "[" * 1500 + "]" * 1500,
)  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of bits, bytes or spans."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(out)
        at = rng.randrange(size) if size else 0
        span = rng.choice((1, 4, 16, 256, 4096))
        kind = rng.choice(("bit", "bit", "bit", "byte", "cut", "drop", "insert", "repeat", "zero", "noise", "swap"))
        if kind == "bit" and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == "byte" and size:
            out[at] = rng.choice((0, 255, 127, rng.randrange(256)))
        elif kind == "cut":
            del out[at:]
        elif kind == "drop":
            del out[at : at + span]
        elif kind == "insert":
            out[at:at] = rng.randbytes(span)
        elif kind == "repeat":
            out[at:at] = out[at : at + span]
        elif kind == "zero":
            out[at : at + span] = bytes(len(out[at : at + span]))
        elif kind == "noise":
            out[at : at + span] = rng.randbytes(len(out[at : at + span]))
        else:
            other = rng.randrange(size) if size else 0
            out[at : at + span], out[other : other + span] = out[other : other + span], out[at : at + span]
    return bytes(out)


def mutate_text(text: str, rng: random.Random) -> bytes:
    """One to three changes of numbers, lines, words or bytes. Not always UTF-8."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines = text.splitlines(keepends=True) or [""]
        line = rng.randrange(len(lines))
        kind = rng.choice(("number", "number", "number", "word", "word", "drop", "repeat", "swap", "join", "cells"))
        if kind == "number" and (found := list(_NUMBER.finditer(text))):
            match = rng.choice(found)
            text = text[: match.start()] + rng.choice(_NUMBERS) + text[match.end() :]
        elif kind == "word":
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(_WORDS) + text[at:]
        elif kind == "drop":
            text = "".join(lines[:line] + lines[line + 1 :])
        elif kind == "repeat":
            text = "".join(lines[:line] + [lines[line]] * rng.choice((2, 3, 50)) + lines[line + 1 :])
        elif kind == "swap":
            other = rng.randrange(len(lines))
            lines[line], lines[other] = lines[other], lines[line]
            text = "".join(lines)
        elif kind == "join":
            text = "".join([*lines[:line], lines[line].rstrip("\n"), *lines[line + 1 :]])
        elif kind == "cells":
            cells = lines[line].split(",")
            rng.shuffle(cells)
            text = "".join([*lines[:line], ",".join(cells), *lines[line + 1 :]])
    data = text.encode("utf-8", "surrogateescape")
    return mutate_bytes(data, rng) if rng.random() < 0.15 else data


def any_text(rng: random.Random) -> str:
    """An argument that somebody might pass; without NUL, which no command line can hold."""
    pool = (*_NUMBERS[:20], *_WORDS[1:26], "0.5", "7", "run_001", "none", "-", "--", ".", "..", "/", "/dev", "*", "a=b")
    return rng.choice(pool).replace("\x00", "")
