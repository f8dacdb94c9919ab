"""Slots: who gets one, when it is free again, and what happens to those who hold one."""

import concurrent.futures
import json
import queue

import httpx
import openai
import pytest

from tests.serve.asking import HOSTS, Slow, answer, run, text, told, until
from vljax.generate.engine import Request
from vljax.generate.sampling import Sampling
from vljax.serve.app import Server
from vljax.serve.batching import Batcher
from vljax.serve.engine import Ask, Piece
from vljax.serve.limits import Limits, Refusal

LIMITS = Limits(queue=3, batch=2, gather=0.001)


def ask() -> Ask:
    return Ask(Request("What is it?"), Sampling())


@pytest.fixture
def batcher():
    made = Batcher(Slow(), LIMITS)
    yield made
    made._runner.end = True
    made.close()
    assert not made.alive()


def submit(batcher) -> tuple:
    """(the job, what it is told)."""
    heard = queue.Queue()
    return batcher.submit(ask(), heard.put), heard


def test_questions_join_those_that_run(batcher):
    first, heard = submit(batcher)
    assert heard.get(timeout=5) == Piece("word ", 1)
    second, other = submit(batcher)
    assert other.get(timeout=5).tokens == 1  # while the first is still being answered
    assert heard.get(timeout=5).tokens > 1 and not first.ended and not second.ended
    third, waits = submit(batcher)  # a batch has two
    assert until(lambda: batcher.waiting == 1) and batcher.taken == 3
    with pytest.raises(Refusal, match="3 questions wait already") as refusal:
        submit(batcher)
    assert refusal.value.status == 429 and refusal.value.headers() == {"Retry-After": "1"}
    batcher.leave(first)
    assert batcher.taken == 2 and waits.get(timeout=5).tokens == 1
    batcher._runner.end = True
    assert until(lambda: batcher.taken == 0)
    assert list(other.queue)[-1].end == "length" and third.ended


def test_who_leaves_while_waiting_is_never_answered(batcher):
    jobs = [submit(batcher) for _ in range(3)]
    assert until(lambda: batcher.waiting == 1)
    batcher.leave(jobs[2][0])
    batcher.leave(jobs[2][0])  # once is enough
    assert batcher.taken == 2 and batcher.waiting == 0 and jobs[2][1].empty()


def test_a_failing_batch_fails_those_in_it_alone(batcher, monkeypatch):
    def fail():
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(batcher._runner, "advance", fail)
        _, heard = submit(batcher)
        assert heard.get(timeout=5) == Piece("word ", 1)
        assert str(heard.get(timeout=5)) == "out of memory"
        assert batcher.taken == 0
    _, heard = submit(batcher)
    assert heard.get(timeout=5).tokens == 1 and heard.get(timeout=5).tokens == 2


def test_closing_answers_what_runs_and_refuses_what_waits(batcher):
    jobs = [submit(batcher) for _ in range(3)]
    assert until(lambda: batcher.waiting == 1)
    batcher._runner.end = True
    batcher.close()
    assert list(jobs[0][1].queue)[-1].end == list(jobs[1][1].queue)[-1].end == "length"
    assert list(jobs[2][1].queue)[-1].status == 503 and batcher.taken == 0
    with pytest.raises(Refusal, match="being stopped"):
        submit(batcher)


@pytest.fixture
def slow(engine):
    runner = Slow()
    with run(Server(engine, "tiny", LIMITS, HOSTS, runner)) as made:
        yield made
        runner.end = True


def test_a_client_that_leaves_frees_its_slot(slow):
    client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "What is it?"}]
    streams = [
        client.chat.completions.create(model="tiny", messages=messages, stream=True)
        for _ in range(2)
    ]
    heard = [next(c for c in s if c.choices[0].delta.content) for s in streams]
    assert len(heard) == 2 and slow.server.batcher.taken == 2
    streams[0].close()
    assert until(lambda: slow.server.batcher.taken == 1)
    assert until(lambda: len(slow.server.runner.counts) == 1)  # nor does the engine write on
    with pytest.raises(httpx.ReadTimeout):  # one who wants it whole, and has no patience
        slow.client.post("/v1/chat/completions", json={"messages": messages}, timeout=0.3)
    assert until(lambda: slow.server.batcher.taken == 1)
    assert slow.metric("vljax_clients_left_total") == 2
    streams[1].close()


def test_who_finds_no_slot_is_told_so(slow):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        holding = [pool.submit(slow.ask, text("What is it?")) for _ in range(3)]
        assert until(lambda: slow.server.batcher.taken == 3)
        refused = slow.ask(text("And this?"))
        assert "wait already" in told(refused, 429) and refused.headers["retry-after"] == "1"
        health = slow.client.get("/health").json()
        assert (health["taken"], health["slots"]) == (3, 3)
        slow.server.runner.end = True
        assert all(answer(h.result()).startswith("word word") for h in holding)


def test_an_error_in_a_stream_is_told_in_it(slow, monkeypatch):
    def fail():
        raise RuntimeError("secret detail")

    monkeypatch.setattr(slow.server.runner, "advance", fail)
    asked = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    with slow.client.stream("POST", "/v1/chat/completions", json=asked) as response:
        lines = [line for line in response.iter_lines() if line]
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["code"] == "internal_error" and "secret" not in error["message"]
    assert slow.server.batcher.taken == 0 and slow.server.batcher.alive()
