"""Vision branch, stage 1: captions of WebVid clips and CC595k images.

``--config=configs/vision_pretrain.py:size=13b,llm=llama2,sharding=fsdp_tp``
"""

from vljax.config import VISION, default, parse_arg, source


def get_config(arg=None):
    arg = parse_arg(arg, size="", llm="vicuna", sharding="fsdp")
    config = default(arg.size, arg.llm, arg.sharding)
    config.name = "vision_pretrain"
    config.objective.name = "vision"
    config.trainable = VISION
    config.start = ("../base",)  # the frozen towers' weights
    config.steps = 5 * 2500
    config.optimizer.update(warmup_steps=2500, steps_per_epoch=2500)
    config.sources.webvid = source(
        "webvid",
        "data/webvid/annotations",
        "data/webvid/videos",
        100,
        256,
        policy="headtail",
        on_bad="skip",  # of millions of clips from the web some are broken
    )
    config.sources.cc595k = source(
        "filter_cap", "data/cc595k/filter_cap.json", "data/cc595k/image", 24, 256
    )
    return config
