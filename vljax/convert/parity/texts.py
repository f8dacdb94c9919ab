"""Texts and tables: captions, prompts, conversations, schedules, and what the config states."""

import dataclasses
import re

import jax
import numpy as np

from vljax.convert.parity.compare import EXACT, PIXEL, Check
from vljax.convert.parity.golden import GoldenSet
from vljax.convert.parity.language import TEMPLATES
from vljax.convert.parity.training import trainable_names
from vljax.convert.towers import SOUND_SCALE, to_torch
from vljax.data.captions import clean_caption
from vljax.data.pipeline import TextSpec
from vljax.data.text import Template, close_turn, expand, open_turn
from vljax.data.tokenizer import AUDIO_HERE, IMAGE_HERE
from vljax.models import qformer, video_llama
from vljax.nn import block
from vljax.train.optimizer import OptimizerConfig, schedule

MEDIA = re.compile(rf"(<(Image|Video)>)((?:{IMAGE_HERE})+)(</\2>)")


def caption_cleaning(golden: GoldenSet, check: Check) -> None:
    """caption_cleaning.json."""
    for prefix in check.cases("in"):
        with check.attempt(prefix):
            check(f"{prefix}out", clean_caption(check[f"{prefix}in"]), EXACT)


def text_cases(golden: GoldenSet, check: Check) -> None:
    """text_cases.json: the layouts that our code knows, against the texts that were used."""
    for family in ("vicuna", "llama2"):
        template = TEMPLATES[family]
        check(f"caption/template_{family}", template.caption, EXACT)
        check(f"caption/end_sym/caption_{family}", template.end, EXACT)
    for name, case in golden.texts["conversations"].items():
        with check.attempt(f"conversations/{name}"):
            prefix = f"conversations/{name}"
            check(f"{prefix}/n_query", golden.config["n_video_query"], EXACT)
            turns = _turns(golden, name)
            for i, (role, text) in enumerate(turns):
                check(f"{prefix}/sources/{i}/from", role, EXACT)
                check(f"{prefix}/sources/{i}/value", text, EXACT)
            if len(turns) != len(case["sources"]):
                raise ValueError(f"got {len(turns)} turns, expected {len(case['sources'])}")
    for name, case in golden.texts["inference"].items():
        with check.attempt(f"inference/{name}"):
            prompt = _asked_again(case["prompt"])
            check(f"inference/{name}/prompt", prompt, EXACT)
            check(f"inference/{name}/n_media", prompt.count(IMAGE_HERE), EXACT)
    question, cases = golden.texts.get("question", ""), golden.texts["inference"].values()
    asked = all(question in case["prompt"] for case in cases)
    check("question", question if asked else "another question", EXACT)
    check("caption/end_sym/caption_noprompt", TextSpec.end, EXACT)
    for name in check.wants:
        if re.match(r"caption/|qa/|video_msg$|max_new_tokens$|.*/model_type$", name):
            check.skip(name, "an input")


def _turns(golden: GoldenSet, name: str) -> list[tuple[str, str]]:
    """A conversation made anew: of a clip from its questions, of an image from its own marks."""
    count, index = golden.config["n_video_query"], int(name.rsplit("/", 1)[1])
    qa = golden.texts["qa"][index]
    turns = [turn for x in qa for turn in (("human", x["q"]), ("gpt", x["a"]))]
    if name.startswith("video"):
        lead = f"<image> {golden.texts['video_msg'][index]}"
        turns[0] = ("human", lead + turns[0][1])
        tags = ("<Video>", "</Video>")
    else:  # where the image stands beside the question is the annotation's
        given = golden.texts["conversations"][name]["sources"][0]["value"]
        marked = MEDIA.sub("<image>", given)
        turns[0] = ("human", marked if turns[0][1] in marked else turns[0][1])
        tags = ("<Image>", "</Image>")
    return [(role, expand(text, count, tags)) for role, text in turns]


def _asked_again(prompt: str) -> str:
    """A chat prompt taken apart into system text and turns, and put together by our templates."""
    if prompt.startswith("[INST]"):
        head, _, body = prompt.partition("\n<</SYS>>\n\n")
        template = _with_system("llama2", head.removeprefix("[INST] <<SYS>>\n"))
        rounds = [r.split(" [/INST]") for r in re.split(r" ?</s><s>\[INST\] ", body)]
        spoken = [(asked, answer.strip()) for asked, answer in rounds]
    else:
        system, *parts = prompt.split("###")
        template = _with_system("vicuna", system)
        said = [part.partition(":")[2].strip(" ") for part in parts]
        # A user's message keeps its own blanks but for the one after the colon.
        asked = [part.partition(": ")[2] for part in parts[::2]]
        spoken = list(zip(asked, said[1::2], strict=True))
    text = ""
    for i, (question, answer) in enumerate(spoken):
        text += open_turn(question, template, first=i == 0)
        if i + 1 < len(spoken):
            text += close_turn(answer, template)
    return text


def _with_system(family: str, system: str) -> Template:
    return dataclasses.replace(TEMPLATES[family], system=system)


# peak, minimum, warm-up steps, steps an epoch, epochs: the original's four stages, and one whose
# warm-up is longer than an epoch.
SCHEDULES = {
    "vision_stage1": (1e-4, 8e-5, 2500, 2500, 5),
    "audio_stage1": (1e-4, 8e-5, 5000, 5000, 5),
    "vision_stage2": (3e-5, 1e-5, 1000, 1000, 3),
    "audio_stage2": (3e-5, 1e-5, 400, 1000, 3),
    "odd_warmup_longer_than_epoch": (1e-4, 1e-5, 15, 10, 3),
}


def lr_schedule(golden: GoldenSet, check: Check) -> None:
    """lr_schedule.npz."""
    for prefix in check.cases("lr"):
        if prefix.rstrip("/") in SCHEDULES:
            with check.attempt(prefix):
                peak, least, warmup, epoch, epochs = SCHEDULES[prefix.rstrip("/")]
                config = OptimizerConfig(
                    peak_lr=peak, min_lr=least, warmup_steps=warmup, steps_per_epoch=epoch
                )
                rate = schedule(config, epoch * epochs)
                check(f"{prefix}lr", jax.vmap(rate)(check[f"{prefix}global_step"]), PIXEL)


INPUTS = (
    *("seed", "img_size", "patch", "vit_width", "vit_depth", "vit_heads", "vit_mlp_ratio"),
    *("q_hidden", "q_heads", "q_layers", "q_inter", "n_query", "n_video_query", "n_audio_query"),
    *("max_frame_pos", "audio_position_rows", "imagebind_image_size", "imagebind_audio_input"),
    *("ib_vision_width", "ib_vision_depth", "ib_vision_heads", "ib_out"),
    *("ib_audio_width", "ib_audio_depth", "ib_audio_heads"),
    *("llm_hidden", "llm_layers", "llm_heads", "llm_kv_heads", "llm_inter", "llm_eps"),
    *("llm_max_pos", "rope_base", "train_lr", "train_weight_decay"),
    "cross_attention_freq_image_qformer",
    "cross_attention_freq_video_audio_qformer",
    "num_layers_video_audio_qformer",
)


def config(golden: GoldenSet, check: Check) -> None:
    """config.json: what the original fixes in code and so do we; sizes are inputs."""
    tokenizer = golden.tokenizer
    known = {
        "vit_layer_norm_eps": block.EPS,
        "ln_vision_eps": video_llama.LN_VISION_EPS,
        "bert_layer_norm_eps": qformer.EPS,
        "pad_token_id": tokenizer.special.pad,
        "bos_token_id": tokenizer.special.bos,
        "eos_token_id": tokenizer.special.eos,
        "image_here_id": tokenizer.encode(IMAGE_HERE)[0],
        "audio_here_id": tokenizer.encode(AUDIO_HERE)[0],
        "vocab": tokenizer.vocab,
    }
    if golden.has("vision_forward.npz"):
        known["batch"], _, known["frames"] = golden.vision["video"].shape[:3]
    if golden.has("audio_imagebind.npz"):
        known["audio_batch"] = len(golden.arrays("audio_imagebind")["audio"])
    if "vit_mlp_ratio" in check:
        known["vit_mlp_hidden"] = int(check["vit_width"] * check["vit_mlp_ratio"])
    for name, value in known.items():
        check(name, value, PIXEL if name.endswith("eps") else EXACT)
    for branch in ("vision", "audio"):
        with check.attempt(f"trainable_{branch}"):
            _same_names(check, f"trainable_{branch}", trainable_names(golden, branch))
    for name in check.wants:
        if name in INPUTS:
            check.skip(name, "an input")


def _same_names(check: Check, name: str, got: list[str]) -> None:
    """A list whose order means nothing."""
    want = check.get(name, [])
    check(name, want if sorted(want) == got else got, EXACT)


def weights(golden: GoldenSet, check: Check) -> None:
    """weights.npz: converted and converted back, every tensor is what it was."""
    for name, tensor in to_torch(golden.params, golden.size).items():
        check(name, tensor, EXACT)
    if SOUND_SCALE in check:
        check(SOUND_SCALE, np.log(np.float32(golden.size.imagebind.sound.norm)))
    for name in golden.coverage.dropped:
        check.skip(name, "a buffer, or a part without use here")
