"""Writes a tiny world: mp4 clips and images, with annotations in the real data sets' own formats.

::

    DIR/world.json                     seed, counts
    DIR/tokenizer.model                sentencepiece, trained on the world's sentences
    DIR/{train,val,test}/
      videos/<page>/<id>.mp4           H.264 + AAC
      webvid/captions.csv              videoid,name,page_dir: what is seen
      hear/captions.csv                the same clips: what they would sound like
      cc595k/filter_cap.json, image/   {"annotations": [{"image_id", "caption"}]}
      llava_instruct.json              [{id, image, conversations: [{from, value}]}]
      videochat.json                   [{video, QA: [{q, a}]}]
      see_instruct.json                LLaVA's format with "video": beside sounds told or unasked
      hear_instruct.json               LLaVA's format with "video": asked about sound, seeing only
      scenes.json                      what each clip really holds
"""

import concurrent.futures
import csv
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vljax.data.sources import COCO
from vljax.data.world import language, render, sound
from vljax.data.world.scenes import Kind, Scene, Split, Thing, random_scene

VOCAB = 576
SHARES: dict[Split, float] = {"train": 0.9, "val": 0.05, "test": 0.05}
Progress = Callable[[int, int], None]


def write_clip(path: Path, frames: np.ndarray, waveform: np.ndarray | None) -> None:
    """Encodes frames [T, H, W, 3] uint8 at render.RATE and mono samples at sound.RATE as an mp4."""
    import av

    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=render.RATE)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.options = {"crf": "12", "preset": "ultrafast", "threads": "1"}
        audio = None
        if waveform is not None:
            audio = out.add_stream("aac", rate=sound.RATE, layout="mono")
            audio.bit_rate = 96_000
        for image in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(video.encode())
        if audio is not None and waveform is not None:
            for block in _audio_frames(waveform):
                out.mux(audio.encode(block))
            out.mux(audio.encode())


def _audio_frames(waveform: np.ndarray) -> Iterator[Any]:
    """Blocks of 1024 samples, as the AAC encoder takes them."""
    import av

    for start in range(0, len(waveform), 1024):
        samples = waveform[None, start : start + 1024]
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = sound.RATE, Fraction(1, sound.RATE), start
        yield block


def clip_path(root: Path, index: int) -> Path:
    """Clips are spread over page folders of 1000, as WebVid's are."""
    return root / "videos" / f"{index // 1000:05d}" / f"{index:07d}.mp4"


def write_scenes(root: Path, scenes: list[Scene], progress: Progress | None = None) -> None:
    """Writes one clip a scene below ``root``, on all cores."""
    for index in range(0, len(scenes), 1000):
        clip_path(root, index).parent.mkdir(parents=True, exist_ok=True)
    jobs = [(clip_path(root, i), scene) for i, scene in enumerate(scenes)]
    # Threads are enough: most of the time is the encoder's, which runs without the GIL.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(_write_scene, jobs), 1):
            if progress:
                progress(done, len(jobs))


def _write_scene(job: tuple[Path, Scene]) -> None:
    path, scene = job
    write_clip(path, render.frames(scene), sound.waveform(scene))


def make_world(root: Path, count: int, seed: int, progress: Progress | None = None) -> None:
    """Writes a world of ``count`` clips and as many images, split into train, val and test.

    Raises FileExistsError if ``root`` is not empty: nothing is overwritten.
    """
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root}: not empty; name a new folder, or delete this one first")
    target, root = root, root.with_name(root.name + ".partial")
    shutil.rmtree(root, ignore_errors=True)  # of an attempt that was cut short
    sizes = {s: max(1, round(count * share)) for s, share in SHARES.items()}
    total = sum(sizes.values())
    done = 0
    for number, (split, n) in enumerate(sizes.items()):
        rng = np.random.default_rng((seed, number))
        scenes = [random_scene(rng, split) for _ in range(n)]
        folder = root / split
        write_scenes(folder, scenes, _part_of(progress, done, total))
        done += n
        _write_annotations(folder, scenes, rng)
        _write_images(folder, n, rng, split)
    train_tokenizer(root / "tokenizer.model", np.random.default_rng((seed, 99)))
    (root / "world.json").write_text(json.dumps({"seed": seed, "clips": sizes}, indent=1) + "\n")
    root.rename(target)


def _part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one part of a longer work."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def _write_annotations(folder: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    names = [clip_path(folder, i) for i in range(len(scenes))]
    pages = [f"{p.parent.name}/{p.name}" for p in names]
    seen = [language.sentence(language.picture_words(s)) for s in scenes]
    _write_table(folder / "webvid" / "captions.csv", names, seen)
    alone = [(p, n, s) for p, n, s in zip(pages, names, scenes, strict=True) if s.kind != "pair"]
    heard = [f"I hear {language.sound_words(objects(s))}." for _, _, s in alone]
    _write_table(folder / "hear" / "captions.csv", [n for _, n, _ in alone], heard)
    chat = [
        {"video": page, "QA": [{"q": q, "a": a} for q, a in _plain_turns(rng, scene)]}
        for page, scene in zip(pages, scenes, strict=True)
    ]
    _write_json(folder / "videochat.json", chat)
    see = [
        {"id": str(i), "video": page, "conversations": _conversation(_sight_turns(rng, scene))}
        for i, (page, scene) in enumerate(zip(pages, scenes, strict=True))
    ]
    _write_json(folder / "see_instruct.json", see)
    hear = [
        {"id": str(i), "video": page, "conversations": _conversation(_sound_turns(rng, scene))}
        for i, (page, _, scene) in enumerate(alone)
    ]
    _write_json(folder / "hear_instruct.json", hear)
    _write_json(folder / "scenes.json", [dataclasses.asdict(s) for s in scenes])


def objects(scene: Scene) -> tuple[str, ...]:
    """What a silent clip would sound like: its objects, in the order they appear."""
    return tuple(t.object for t in scene.things)


Pairs = list[tuple[str, str]]  # question, answer


def _plain_turns(rng: np.random.Generator, scene: Scene, moving: bool = True) -> Pairs:
    """Questions about a picture alone."""
    asked = language.turns(rng, scene, None, int(rng.integers(1, 4)), moving)
    return [(t.question, t.answer) for t in asked]


def _sight_turns(rng: np.random.Generator, scene: Scene) -> Pairs:
    """Questions about a picture (``<image>``) that is not alone, so that branches learn apart.

    In half of them a sound is told in words and contradicts; in the others what stands in the
    sound's place is another clip, which nothing asks about.
    """
    heard, weights = None, language.ASKED_BESIDE_SOUND
    if rng.random() < 0.5:
        heard = random_scene(rng, sounds=int(rng.choice(3, p=(0.1, 0.5, 0.4)))).sounds or ()
        weights = language.ASKED_OF_SIGHT
    words = "<other>" if heard is None else f" {language.sound_words(heard)}"
    asked = language.turns(rng, scene, heard, int(rng.integers(1, 4)), weights=weights)
    return _after(f"{language.HEAR}{words}. {language.SEE}<image> ", asked)


def _sound_turns(rng: np.random.Generator, scene: Scene) -> Pairs:
    """Questions about a sound, for which a silent picture stands in (``<image>``).

    A fifth are alone; in a fifth a picture is told in words and contradicts; in three tenths what
    stands in the picture's place is another clip, which nothing asks about. In the rest the
    picture is the clip's own and asked about, and the sound another's: to be heard, not obeyed.
    """
    count, kind = int(rng.integers(1, 4)), rng.choice(4, p=(0.2, 0.2, 0.3, 0.3))
    if kind == 3:
        asked = language.turns(rng, scene, None, count, weights=language.ASKED_BESIDE_SOUND)
        return _after(f"{language.HEAR}<other>. {language.SEE}<Video><image></Video> ", asked)
    told, lead, weights = None, "", language.ASKED_OF_SOUND
    if kind == 1:
        told = random_scene(rng, "any")
        lead = f"{language.SEE}<Video>{language.picture_words(told)}</Video> "
    elif kind == 2:
        lead, weights = f"{language.SEE}<Video><other></Video> ", language.ASKED_BESIDE_SIGHT
    asked = language.turns(rng, told, objects(scene), count, weights=weights)
    return _after(f"{language.HEAR}<image>. {lead}", asked)


def _after(lead: str, asked: list[language.Turn]) -> Pairs:
    """Questions and answers, the first question after ``lead``."""
    pairs = [(t.question, t.answer) for t in asked]
    return [(lead + pairs[0][0], pairs[0][1]), *pairs[1:]]


def _conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": role, "value": text}
        for question, answer in turns
        for role, text in (("human", question), ("gpt", answer))
    ]


def _write_images(folder: Path, count: int, rng: np.random.Generator, split: Split) -> None:
    """Still images of one thing, a pair or nothing: captions, and questions about them."""
    from PIL import Image

    (folder / "cc595k" / "image").mkdir(parents=True)
    (folder / "coco").mkdir()
    captions, records = [], []
    for i in range(count):
        kinds: tuple[Kind, ...] = ("one", "pair", "empty")
        scene = random_scene(rng, split, kinds[rng.choice(3, p=(0.75, 0.17, 0.08))])
        still = tuple(Thing(t.object, t.colour) for t in scene.things)
        image = Image.fromarray(render.still(rng, still))
        words = language.picture_words(scene, moving=False)
        if i % 2:
            image.save(folder / "cc595k" / "image" / f"{i:07d}.jpg", quality=95, subsampling=0)
            captions.append({"image_id": f"{i:07d}", "caption": language.sentence(words)})
            continue
        name = f"{i:012d}.jpg"
        image.save(folder / "coco" / (COCO + name), quality=95, subsampling=0)
        turns = _plain_turns(rng, scene, moving=False)
        turns[0] = ("<image>\n" + turns[0][0], turns[0][1])
        records.append({"id": str(i), "image": name, "conversations": _conversation(turns)})
    _write_json(folder / "cc595k" / "filter_cap.json", {"annotations": captions})
    _write_json(folder / "llava_instruct.json", records)


def _write_table(path: Path, clips: list[Path], captions: list[str]) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("videoid", "name", "page_dir"))
        table.writerows(
            (c.stem, text, c.parent.name) for c, text in zip(clips, captions, strict=True)
        )


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=0) + "\n")


def train_tokenizer(path: Path, rng: np.random.Generator) -> None:
    """A sentencepiece BPE model with LLaMA's options, on sentences of this world."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(rng),
        model_writer=model,
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,  # else rare capitals, as of "Red", are spelt in bytes
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["###", "<Video>", "</Video>", "<Image>", "</Image>"],
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def _sentences(rng: np.random.Generator) -> Iterator[str]:
    from vljax.data.text import CAPTION_PROMPTS, VICUNA, close_turn, open_turn

    for _ in range(4000):
        scene = random_scene(rng, "any")
        lead = f"{language.HEAR} {language.sound_words(scene.sounds or ())}. {language.SEE}"
        lead += f"<Video>{language.picture_words(scene)}</Video> "
        seen, heard = ((scene, scene.sounds), (scene, None), (None, scene.sounds))[rng.integers(3)]
        for turn in language.turns(rng, seen, heard, 2):
            yield open_turn(lead + turn.question, VICUNA) + close_turn(turn.answer, VICUNA)
        yield "###Human: " + CAPTION_PROMPTS[int(rng.integers(4))] + " ###Assistant: "
