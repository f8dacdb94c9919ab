"""One small data set of noise, annotated in every family's own layout."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.conftest import tone, write
from vljax.data.sources import COCO

# Name: family, annotations, media, the reader's options.
LAYOUTS = {
    "webvid": ("webvid", "webvid.csv", "videos", {"clean": False}),
    "filter_cap": ("filter_cap", "filter_cap.json", "image", {}),
    "llava": ("llava", "llava.json", "coco", {}),
    "llava_video": ("llava", "llava_video.json", "videos", {"tags": ("<Video>", "</Video>")}),
    "videochat": ("videochat", "videochat.json", "videos", {}),
    "folder": ("folder", "plain", "plain", {}),
}


def write_layouts(root: Path, count: int) -> None:
    """``count`` clips and images in ``root``, which every layout describes."""
    rng = np.random.default_rng(0)
    for folder in ("videos/p", "image", "coco", "plain"):
        (root / folder).mkdir(parents=True)
    names = [f"{i:03}" for i in range(count)]
    for name in names:
        noise = rng.integers(0, 256, (9, 32, 48, 3), np.uint8)
        write(root / "videos/p" / f"{name}.mp4", noise, tone(0.5, 16000, 1))
        image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
        image.save(root / "image" / f"{name}.jpg")
        image.save(root / "coco" / f"{COCO}{name}.jpg")
        image.save(root / "plain" / f"{name}.jpg")
        (root / "plain" / f"{name}.txt").write_text(f"picture {name}, é")
    with (root / "webvid.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("videoid", "name", "page_dir"), *((n, f"A clip: {n}, é!", "p") for n in names)]
        )
    captions = [{"image_id": n, "caption": f"picture {n}"} for n in names]
    turns = [
        {"from": "human", "value": "<image>\nwho?"},
        {"from": "gpt", "value": "a dog, é."},
        {"from": "human", "value": "sure?"},
        {"from": "gpt", "value": "no."},
    ]
    chats = [{"id": n, "image": f"{n}.jpg", "conversations": turns} for n in names]
    films = [{"id": n, "video": f"p/{n}.mp4", "conversations": turns} for n in names]
    talks = [{"video": f"p/{n}.mp4", "QA": [{"q": "who?", "a": "a dog."}]} for n in names]
    for name, data in {
        "filter_cap.json": {"annotations": captions},
        "llava.json": chats,
        "llava_video.json": films,
        "videochat.json": talks,
    }.items():
        (root / name).write_text(json.dumps(data))
