"""vljax-tiny, from an empty folder to answers: stage=all, or one of the stages by name.

Stage 0 makes what is frozen later (text, image, imagebind); then the paper's stages of each branch,
on files of the tiny world that are read as the real data sets are.
"""

from ml_collections import ConfigDict

from vljax.config import AUDIO, VISION, default, parse_arg, source

PRETRAINED = ("../text/weights", "../image/weights", "../imagebind/weights")


def get_config(arg=None):
    arg = parse_arg(arg, stage="all", sharding="dp")
    if arg.stage != "all":
        if arg.stage not in STAGES:
            raise ValueError(
                f"stage: got {arg.stage!r}, expected all or one of {', '.join(STAGES)}"
            )
        return stage_config(arg.stage, arg.sharding)
    config = ConfigDict({"name": "tiny", "workdir": "", "seed": 0, "sharding": arg.sharding})
    stages = {name: stage_config(name, arg.sharding) for name in STAGES}
    config.stages = ConfigDict(stages, sort_keys=False)  # later ones start from earlier ones
    return config


def stage_config(name, sharding):
    config = default("tiny", "vicuna", sharding)
    config.name = name
    config.template = "tiny"
    config.seed = 0
    config.log_every = 25
    config.world = {"dir": config.get_oneway_ref("workdir") + "/../world", "clips": 3000}
    config.tokenizer = config.world.get_oneway_ref("dir") + "/tokenizer.model"
    config.optimizer.update(b2=0.98, weight_decay=0.02, clip=1.0, warmup_lr=0.0)
    STAGES[name](config)
    config.optimizer.min_lr = config.optimizer.get_oneway_ref("peak_lr") / 50
    config.optimizer.steps_per_epoch = config.get_oneway_ref("steps")
    return config


def text(config):
    """The language model reads a description and answers questions about it."""
    config.objective.update(name="text", context_noise=0.5)
    config.trainable = (r"llama/",)
    config.steps = 2200
    config.optimizer.update(peak_lr=3e-3, warmup_steps=50)
    config.sources.text = world("text", 32)


def image(config):
    """The image encoder learns shapes, colours and places."""
    config.objective.update(name="tags", classes=(7, 6, 12, 12, 12), things=2)
    config.trainable = (r"frame_encoder/", r"tag_heads/", r"rgb_head/", r"patch_head/")
    config.steps = 2500
    config.optimizer.update(peak_lr=1.5e-3, warmup_steps=100)
    config.sources.tags = world("tags", 64)


def imagebind(config):
    """Pictures and their sounds meet in one space: the only stage that hears anything.

    The vision tower begins as the image encoder, as ImageBind's began as CLIP's.
    """
    config.start = ("../image/weights",)
    parts = {"layers": "layers", "stem": "patch", "position": "position", "class": "class"}
    config.begin_as = tuple(
        (f"imagebind/vision/{a}", f"frame_encoder/vit/{b}") for a, b in parts.items()
    )
    config.objective.update(name="pairs")
    config.trainable = (r"imagebind/", r"log_scale")
    config.steps = 700
    config.optimizer.update(peak_lr=2e-3, warmup_steps=50)
    config.sources.pairs = world("pairs", 64)


def vision_pretrain(config):
    config.objective.name = "vision"
    config.trainable = VISION
    config.start = PRETRAINED
    config.steps = 800
    config.optimizer.update(peak_lr=2e-3, warmup_steps=20)
    config.sources.webvid = captions(config, "webvid", 4)
    config.sources.cc595k = captions(config, "cc595k", 1)


def vision_finetune(config):
    config.objective.update(name="vision", distract=True)
    config.trainable = VISION
    config.start = (*PRETRAINED, "../vision_pretrain/weights")
    config.steps = 1000
    config.optimizer.update(peak_lr=2e-3, warmup_steps=20)
    config.sources.align = captions(config, "cc595k", 1, prompts=True, end="###", limit=64)
    config.sources.llava = instructions(config, "llava", "llava_instruct.json", "coco", 1.5)
    config.sources.videochat = instructions(config, "videochat", "videochat.json", "videos", 3)
    tags = {"tags": ("<Video>", "</Video>")}
    config.sources.see = instructions(
        config, "llava", "see_instruct.json", "videos", 5, options=tags
    )


def audio_pretrain(config):
    config.objective.update(name="audio", feature_noise=0.7)
    config.trainable = AUDIO
    config.start = PRETRAINED
    config.steps = 200
    config.optimizer.update(peak_lr=2e-3, warmup_steps=20)
    config.sources.hear = captions(config, "hear", 1)


def audio_finetune(config):
    config.objective.update(name="audio", feature_noise=0.7, distract=True)
    config.trainable = AUDIO
    config.start = (*PRETRAINED, "../vision_finetune/weights", "../audio_pretrain/weights")
    config.steps = 1000
    config.optimizer.update(peak_lr=2e-3, warmup_steps=20)
    config.sources.hear = captions(config, "hear", 1, prompts=True, end="###", limit=64)
    bare = {"tags": ("", "")}
    config.sources.instruct = instructions(
        config, "llava", "hear_instruct.json", "videos", 4, options=bare
    )


STAGES = {
    f.__name__: f
    for f in (
        text,
        image,
        imagebind,
        vision_pretrain,
        vision_finetune,
        audio_pretrain,
        audio_finetune,
    )
}


def world(name, batch_size):
    """Batches drawn from the world itself, without files."""
    return ConfigDict({"family": "world", "name": name, "batch_size": batch_size})


def captions(config, name, weight, **fields):
    """Captions of the world's clips ("webvid", "hear") or images ("cc595k")."""
    train = config.world.get_oneway_ref("dir") + "/train/"
    if name == "cc595k":
        place = ("filter_cap", train + "cc595k/filter_cap.json", train + "cc595k/image")
        return tiny_source(*place, weight, **fields)
    place = ("webvid", train + f"{name}/captions.csv", train + "videos")
    return tiny_source(*place, weight, options={"clean": False}, **fields)


def instructions(config, family, annotations, media, weight, **fields):
    train = config.world.get_oneway_ref("dir") + "/train/"
    return tiny_source(family, train + annotations, train + media, weight, limit=256, **fields)


def tiny_source(family, annotations, media, weight, **fields):
    sizes = {"media_tokens": 8, "size": 48, "augment": False, "masking": "clean"}
    return source(family, annotations, media, weight, 32, **sizes | fields)
