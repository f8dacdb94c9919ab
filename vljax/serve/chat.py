"""A chat completion's JSON, as OpenAI writes it, made into a question; what is wrong is told."""

import dataclasses
import json
from typing import Any

from vljax.generate.sampling import Sampling
from vljax.serve.fields import boolean, integer, mapping, number, short, text
from vljax.serve.limits import Limits, wrong
from vljax.serve.parts import PARTS, Part

# Fields of OpenAI's that change nothing here.
HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Fields of OpenAI's that would change an answer, with the values that leave it as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([], ""),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "logprobs": (False,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}
KNOWN = {
    *("messages", "model", "stream", "stream_options", "temperature", "top_p", "top_k", "seed"),
    *("max_tokens", "max_completion_tokens", "repetition_penalty", "look", "listen"),
}
ROLES = {"user": "human", "assistant": "gpt"}
DEFAULT_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Chat:
    """What a request asks.

    Attributes:
      question: the last message. history: (role, text) pairs before it. system: "" if not given.
      include_usage: whether a stream ends with the counts of tokens.
    """

    model: str | None
    question: str
    history: tuple[tuple[str, str], ...]
    system: str
    parts: tuple[Part, ...]
    sampling: Sampling
    seed: int | None
    stream: bool
    include_usage: bool
    look: bool
    listen: bool


def parse(body: bytes, limits: Limits) -> Chat:
    """Raises Refusal (400, or 413 for a file beyond the limit) with a sentence."""
    asked = _json(body)
    for name, value in asked.items():
        neutral = NEUTRAL.get(name, ())
        if name in KNOWN | HARMLESS or value is None or value in neutral:
            continue
        if neutral:
            raise wrong(f"{name}: got {short(value)}, which is not supported: leave it out", name)
        raise wrong(f"{short(name)}: no such field: leave it out", name[:80])
    system, said, parts = _messages(asked.get("messages"), limits)
    options = mapping(asked, "stream_options")
    return Chat(
        model=text(asked, "model"),
        question=said[-1][1],
        history=tuple(said[:-1]),
        system=system,
        parts=tuple(parts),
        sampling=_sampling(asked, limits),
        seed=integer(asked, "seed", None),
        stream=boolean(asked, "stream", False),
        include_usage=boolean(options, "include_usage", False),
        look=boolean(asked, "look", True),
        listen=boolean(asked, "listen", True),
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
        halved = _halved(asked)
    except (ValueError, RecursionError) as error:
        raise wrong(f"the body is not JSON ({type(error).__name__}): send an object") from error
    if halved:
        raise wrong("the body holds half of a character (a lone surrogate): send whole ones")
    if not isinstance(asked, dict):
        raise wrong(f"the body is a JSON {type(asked).__name__}, expected an object")
    return asked


def _halved(value: Any) -> bool:
    """Whether a text somewhere in it can't be written as UTF-8."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_halved, inner))


def _messages(messages: Any, limits: Limits) -> tuple[str, list[tuple[str, str]], list[Part]]:
    """-> the system text, the turns as (role, text), and the files of all messages."""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages: expected a list of one or more messages", "messages")
    systems: list[str] = []
    said: list[tuple[str, str]] = []
    parts: list[Part] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise wrong(f"{where}: got {short(message)}, expected an object", where)
        role = message.get("role")
        text, files = _content(message.get("content"), where, limits)
        if role in ("system", "developer") and not said and not files:
            systems.append(text)
            continue
        expected = "assistant" if len(said) % 2 else "user"
        if role != expected:
            raise wrong(
                f"{where}: got role {short(role)}, expected {expected}: user and assistant take "
                "turns, after system messages",
                where,
            )
        if files and role != "user":
            raise wrong(f"{where}: got a file, which only a user's message may have", where)
        parts += files
        said.append((ROLES[role], text))
    if not said or said[-1][0] != "human":
        raise wrong("messages: the last one must be a user's", "messages")
    length = sum(len(text) for _, text in said) + sum(map(len, systems))
    if length > limits.text:
        raise wrong(f"messages: got {length:,} characters, expected at most {limits.text:,}")
    if len(parts) > limits.parts:
        raise wrong(f"messages: got {len(parts)} files, expected at most {limits.parts}")
    if not said[-1][1].strip():
        raise wrong("messages: the last one has no text: ask something", "messages")
    return "\n".join(systems), said, parts


def _content(content: Any, where: str, limits: Limits) -> tuple[str, list[Part]]:
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise wrong(f"{where}.content: got {short(content)}, expected text or a list of parts")
    texts, files = [], []
    for i, part in enumerate(content):
        at = f"{where}.content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(text(part, "text") or "")
        elif kind in PARTS:
            value = part.get(kind)
            if not isinstance(value, dict):
                raise wrong(f"{at}.{kind}: got {short(value)}, expected an object", at)
            files.append(PARTS[kind](kind, value, at, limits))
        else:
            raise wrong(
                f"{at}: got a part of type {short(kind)}, expected text or one of "
                f"{', '.join(PARTS)}",
                at,
            )
    return "\n".join(texts), files


def _sampling(asked: dict[str, Any], limits: Limits) -> Sampling:
    tokens = integer(asked, "max_completion_tokens", integer(asked, "max_tokens", None))
    if tokens is not None and not 1 <= tokens <= limits.new_tokens:
        raise wrong(f"max_tokens: got {tokens}, expected 1 to {limits.new_tokens}", "max_tokens")
    temperature = number(asked, "temperature", 0.0)
    if temperature > 2:
        raise wrong(f"temperature: got {temperature}, expected 0 to 2", "temperature")
    try:
        return Sampling(
            temperature=temperature,
            top_k=integer(asked, "top_k", 50),
            top_p=number(asked, "top_p", 0.9),
            max_new_tokens=tokens or min(DEFAULT_TOKENS, limits.new_tokens),
            repetition_penalty=number(asked, "repetition_penalty", 1.0),
        )
    except ValueError as error:
        raise wrong(str(error), str(error).partition(":")[0]) from error
