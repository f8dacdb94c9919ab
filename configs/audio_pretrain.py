"""Audio branch, stage 1: trained on what is seen, through ImageBind's shared space."""

from vljax.config import AUDIO, default, parse_arg, source


def get_config(arg=None):
    arg = parse_arg(arg, size="", llm="vicuna", sharding="fsdp")
    config = default(arg.size, arg.llm, arg.sharding)
    config.name = "audio_pretrain"
    config.objective.update(name="audio", feature_noise=0.0)
    config.trainable = AUDIO
    config.start = ("../base",)  # the frozen towers' weights
    config.steps = 5 * 5000
    config.optimizer.update(warmup_steps=5000, steps_per_epoch=5000)
    config.sources.webvid = source(
        "webvid",
        "data/webvid/annotations",
        "data/webvid/videos",
        100,
        256,
        policy="headtail",
        media_tokens=8,
        on_bad="skip",  # of the clips from the web some are broken
    )
    config.sources.cc595k = source(
        "filter_cap", "data/cc595k/filter_cap.json", "data/cc595k/image", 24, 256, media_tokens=8
    )
    return config
