"""Caption cleaning against the original's answers."""

import json
from pathlib import Path

import pytest

from vljax.data.captions import clean_caption

CASES = json.loads((Path(__file__).parents[1] / "golden/caption_cleaning.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_matches_the_original(case: dict) -> None:
    assert clean_caption(case["in"]) == case["out"]


def test_what_stays_and_what_goes() -> None:
    assert clean_caption("Hi!\n") == "hi"
    assert clean_caption("A\tB  c\n\nd") == "a\tb c d"
    assert clean_caption("don't; stop-it, ok?") == "don't stop-it, ok?"
    assert clean_caption("...") == ""
    assert clean_caption("") == ""
