"""The server from outside: right answers in every layout, streams, and what it tells of itself."""

import base64
import concurrent.futures
import io
import json

import av
import numpy as np
import openai
import pytest
from PIL import Image

from tests.serve.asking import answer, by_url, run, text, told, uploaded
from vljax.data.video import read_clip, uniform_indices
from vljax.generate.chat import SAMPLE
from vljax.serve.app import Server
from vljax.serve.limits import Limits

WHAT, HEAR = text("What happens?"), text("What do you hear?")


@pytest.fixture(scope="module")
def client(running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def wav() -> bytes:
    """The sample's sound alone."""
    file = io.BytesIO()
    with av.open(str(SAMPLE)) as clip, av.open(file, "w", format="wav") as out:
        stream = out.add_stream("pcm_s16le", rate=clip.streams.audio[0].rate, layout="mono")
        resampler = av.AudioResampler(format="s16", layout="mono", rate=stream.rate)
        for frame in clip.decode(audio=0):
            for piece in resampler.resample(frame):
                out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def image() -> bytes:
    frames = read_clip(SAMPLE, lambda n: uniform_indices(n, 8), (48, 48)).frames
    file = io.BytesIO()
    Image.fromarray(frames[4]).resize((192, 192)).save(file, "PNG")
    return file.getvalue()


def test_the_openai_client_works_unchanged(client, clip):
    assert [m.id for m in client.models.list()] == ["tiny"]
    url = f"data:video/mp4;base64,{base64.b64encode(clip).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, WHAT]
    messages = [{"role": "user", "content": content}]
    whole = client.chat.completions.create(model="tiny", messages=messages)
    assert whole.choices[0].message.content == "A green car moves left."
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    messages += [
        {"role": "assistant", "content": whole.choices[0].message.content},
        {"role": "user", "content": "What do you hear?"},
    ]
    stream = client.chat.completions.create(
        model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content for c in chunks if c.choices]
    assert "".join(p for p in pieces if p) == "A drum."
    assert len([p for p in pieces if p]) > 1
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.completion_tokens > 1


def test_openais_files_and_errors_work_unchanged(client, clip):
    made = client.files.create(file=("sample.mp4", clip), purpose="user_data")
    assert (made.filename, made.bytes, made.status) == ("sample.mp4", len(clip), "processed")
    messages = [{"role": "user", "content": [uploaded(made.id), HEAR]}]
    found = client.chat.completions.create(model="tiny", messages=messages)
    assert found.choices[0].message.content == "A drum."
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError, match="upload it again"):
        client.chat.completions.create(model="tiny", messages=messages)
    with pytest.raises(openai.NotFoundError, match="expected 'tiny'"):
        client.chat.completions.create(model="gpt-4o", messages=messages)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="tiny", messages=messages, temperature=3)


def test_each_sense_may_be_left_out(running, clip):
    file = by_url("video_url", clip)
    assert answer(running.ask(file, WHAT)) == "A green car moves left."
    assert answer(running.ask(file, HEAR, look=False)) == "A drum."
    assert answer(running.ask(file, HEAR, listen=False)) == "I can't tell: there is no sound."
    assert answer(running.ask(file, WHAT, look=False)) == "I can't tell: there is no picture."
    assert "nothing is left" in told(running.ask(file, WHAT, look=False, listen=False), 400)


def test_images_and_sounds_have_parts_of_their_own(running, image, wav, clip):
    assert answer(running.ask(by_url("image_url", image), WHAT)) == "A green car."
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode()}}
    assert answer(running.ask(sound, HEAR)) == "A drum."
    assert answer(running.ask(by_url("image_url", image), sound, HEAR)) == "A drum."
    assert answer(running.ask(by_url("image_url", image), sound, WHAT)) == "A green car."
    assert "send it as video_url" in told(running.ask(by_url("image_url", clip), WHAT), 400)
    assert "send it as image_url" in told(running.ask(by_url("video_url", image), WHAT), 400)
    assert "two sounds" in told(running.ask(by_url("video_url", clip), sound, WHAT), 400)


def test_what_the_model_gets_can_be_seen(running, clip):
    made = running.upload(clip).json()
    assert made["media"] == {
        "kind": "video",
        "seconds": 4.0,
        "frames": 8,
        "at": [i / 2 for i in range(8)],
        "sounds": 8,
    }
    frames = read_clip(SAMPLE, lambda n: uniform_indices(n, 8), (48, 48)).frames
    shown = running.client.get(f"/v1/files/{made['id']}/frames/3.png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown.content))), frames[3])
    heard = running.client.get(f"/v1/files/{made['id']}/sounds/0.png")
    assert Image.open(io.BytesIO(heard.content)).size == (96, 32)
    told(running.client.get(f"/v1/files/{made['id']}/frames/8.png"), 404)
    told(running.client.get("/v1/files/file-guessed/frames/0.png"), 404)


def test_many_at_once_are_answered_as_one_alone(running, clip):
    file = uploaded(running.upload(clip).json()["id"])
    right = {"What happens?": "A green car moves left.", "What do you hear?": "A drum."}

    def ask(question: str) -> bool:
        return answer(running.ask(file, text(question))) == right[question]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, list(right) * 8))
    assert running.client.get("/health").json()["taken"] == 0
    assert running.metric('vljax_batch_size_bucket{le="1.0"}') < running.metric(
        "vljax_batch_size_count"
    )


def test_a_seed_draws_the_same_answer_again(running):
    wild = {"temperature": 2, "top_p": 1, "top_k": 0, "max_tokens": 12}

    def drawn(**fields) -> str:
        return answer(running.ask(text("What is it?"), **wild, **fields))

    assert drawn(seed=5) == drawn(seed=5)
    assert len({drawn() for _ in range(16)}) > 1
    assert answer(running.ask(WHAT, max_tokens=2)) != answer(running.ask(WHAT))


def test_a_system_text_is_given_to_the_model(running):
    messages = [{"role": "system", "content": "x " * 30}, {"role": "user", "content": [WHAT]}]
    with_it = running.client.post("/v1/chat/completions", json={"messages": messages}).json()
    without = running.ask(WHAT).json()
    assert with_it["usage"]["prompt_tokens"] >= without["usage"]["prompt_tokens"] + 30


def test_health_and_metrics(running, clip):
    health = running.client.get("/health")
    assert health.json()["status"] == "ok" and health.json()["sees"] and health.json()["hears"]
    before = running.metric("vljax_answer_tokens_total")
    usage = running.ask(by_url("video_url", clip), WHAT).json()["usage"]
    assert running.metric("vljax_answer_tokens_total") == before + usage["completion_tokens"]
    assert running.metric("vljax_answer_seconds_count") > 0
    assert running.metric("vljax_slots_taken") == 0
    refused = 'vljax_refused_total{code="invalid_value"}'
    told(running.ask(WHAT, n=2), 400)
    count = running.metric(refused)
    told(running.ask(WHAT, n=2), 400)
    assert running.metric(refused) == count + 1


def test_urls_are_fetched_only_from_named_origins(running, engine, clip):
    local = f"{running.url}/sample.mp4"
    for url in (local, "file:///etc/passwd", "http://169.254.169.254/latest", "//x", "javascript:"):
        part = {"type": "video_url", "video_url": {"url": url}}
        assert "is not fetched" in told(running.ask(part, WHAT), 400)
    part = {"type": "video_url", "video_url": {"url": local}}
    with run(Server(engine, "tiny", Limits(fetch_from=(running.url,)))) as other:
        assert answer(other.ask(part, WHAT)) == "A green car moves left."
        missing = {"type": "video_url", "video_url": {"url": f"{running.url}/none"}}
        assert "404" in told(other.ask(missing, WHAT), 422)


def test_a_stream_is_json_events(running):
    messages = [{"role": "user", "content": "What is it?"}]
    asked = {"messages": messages, "stream": True}
    with running.client.stream("POST", "/v1/chat/completions", json=asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line for line in response.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-1]]
    assert {c["id"] for c in chunks} == {chunks[0]["id"]}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
