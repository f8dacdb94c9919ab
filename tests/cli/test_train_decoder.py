"""The decoder that a run trains for is the one that it is given."""

import dataclasses
import json

import pytest

from vljax.cli.train import with_decoder_of
from vljax.models.sizes import TINY, size_as_dict
from vljax.store import WeightsError


def base(folder, parts=("llama",), **decoder):
    size = dataclasses.replace(TINY, llama=dataclasses.replace(TINY.llama, **decoder))
    folder.mkdir()
    manifest = {"model": size_as_dict(size), "parts": list(parts)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def test_a_decoder_with_a_row_more_and_another_eps(tmp_path):
    given = base(tmp_path / "base", vocab=TINY.llama.vocab + 1, eps=1e-5)
    size = with_decoder_of(TINY, [str(tmp_path / "nowhere"), given])
    assert (size.llama.vocab, size.llama.eps) == (TINY.llama.vocab + 1, 1e-5)
    assert dataclasses.replace(size, llama=TINY.llama) == TINY


def test_what_states_no_decoder_changes_nothing(tmp_path):
    branch = base(tmp_path / "branch", parts=("video_proj",), eps=1e-5)
    assert with_decoder_of(TINY, [branch]) == TINY


def test_a_decoder_of_another_size_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"width and depth \(128, 4\), but size=tiny has \(128"):
        with_decoder_of(TINY, [base(tmp_path / "base", depth=4)])
