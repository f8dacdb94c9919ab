"""Caption cleaning, the `blip_caption` text processor of BLIP-2 and Video-LLaMA."""

import re

MAX_WORDS = 50


def clean_caption(text: str) -> str:
    """Lower-cases a caption, blanks `. ! " ( ) * # : ; ~`, and keeps its first 50 words.

    Commas, apostrophes, hyphens and question marks stay. Words are what single spaces separate, as
    in the original: runs of two or more blanks collapse to one space first.
    """
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:MAX_WORDS])
