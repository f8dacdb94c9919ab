"""Vision branch, stage 2: detailed captions, LLaVA's and VideoChat's instructions."""

from vljax.config import VISION, default, masking, parse_arg, source


def get_config(arg=None):
    arg = parse_arg(arg, size="", llm="vicuna", sharding="fsdp")
    config = default(arg.size, arg.llm, arg.sharding)
    config.name = "vision_finetune"
    config.objective.name = "vision"
    config.trainable = VISION
    config.start = ("../base", "../vision_pretrain/weights")
    config.steps = 3 * 1000
    config.optimizer.update(peak_lr=3e-5, min_lr=1e-5, warmup_steps=1000, steps_per_epoch=1000)
    labels = masking(arg.llm)
    config.sources.align = source(
        "filter_cap",
        "data/cc_sbu_align/filter_cap.json",
        "data/cc_sbu_align/image",
        1,
        32,
        prompts=True,
        end="",  # the template's own
        limit=320,
    )
    config.sources.llava = source(
        "llava",
        "data/llava/llava_instruct_150k.json",
        "data/coco/train2014",
        1,
        32,
        limit=512,
        masking=labels,
    )
    config.sources.videochat = source(
        "videochat",
        "data/videochat/instruct.json",
        "data/webvid/videos",
        1,
        32,
        limit=512,
        masking=labels,
        on_bad="skip",  # of the clips from the web some are broken
    )
    return config
