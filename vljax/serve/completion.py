"""Answers in OpenAI's layout: a chat completion, or the chunks of one as server-sent events."""

import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator

from vljax.serve.batching import Answer
from vljax.serve.engine import Piece

Json = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Completion:
    """One answer's frame: who says it, and how long its prompt was."""

    model: str
    prompt_tokens: int
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def usage(self, tokens: int) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def whole(self, text: str, last: Piece) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.end}
        return self._frame("chat.completion", [choice]) | {"usage": self.usage(last.tokens)}

    def chunk(self, delta: Json, end: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
        return event(self._frame("chat.completion.chunk", [choice]))

    async def chunks(self, answer: Answer, include_usage: bool) -> AsyncIterator[str]:
        yield self.chunk({"role": "assistant", "content": ""})
        tokens = 0
        async for piece in answer:
            tokens = piece.tokens
            if piece.text:
                yield self.chunk({"content": piece.text})
            if piece.end:
                yield self.chunk({}, piece.end)
        if include_usage:
            counts = {"usage": self.usage(tokens)}
            yield event(self._frame("chat.completion.chunk", []) | counts)
        yield "data: [DONE]\n\n"

    def _frame(self, kind: str, choices: list[Json]) -> Json:
        frame: Json = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return frame | {"choices": choices}


def event(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
