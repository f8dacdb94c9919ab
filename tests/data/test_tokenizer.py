"""One vocabulary in two kinds of file: the same ids, placeholders, special tokens and words."""

import json
import random
import shutil
from pathlib import Path

import pytest

from vljax.data.tokenizer import AUDIO_HERE, LLAMA, PromptError, Special, Tokenizer

MODEL = Path(__file__).parent.parent / "golden" / "tokenizer.model"
PARTS = [
    *("dog", "boats", "what is red?", "Human", "###", "Image", "3.14", "a", ",", "x"),
    *(" ", "  ", "\n", "\t", "\u2581", "\u00e9", "\u65e5\u672c", "\U0001f642", "<", "/", ">"),
    *("<s>", "</s>", "<unk>", "<ImageHere>", "</Image>", "[INST] <<SYS>>", "\u00a0"),
]


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(PARTS, k=draw.randrange(12))) for _ in range(count)]


def test_both_files_give_the_same_ids_and_words(tokenizer_json):
    model, json_file = Tokenizer(MODEL), Tokenizer(tokenizer_json)
    assert model.vocab == json_file.vocab
    assert model.special == json_file.special == LLAMA
    for text in texts(3000):
        ids = model.encode(text, bos=True)
        assert json_file.encode(text, bos=True) == ids, text
        assert json_file.decode(ids) == model.decode(ids), text
        assert json_file.stop_ids(text) == model.stop_ids(text), text


def test_placeholders_follow_the_vocabulary(tokenizer):
    ids = tokenizer.encode(f"a <ImageHere> {AUDIO_HERE} <s></s><unk>")
    assert [i for i in ids if i >= tokenizer.vocab] == [tokenizer.vocab, tokenizer.vocab + 1]
    assert ids[-3:] == [LLAMA.bos, LLAMA.eos, LLAMA.pad]


def test_white_space_is_stripped_around_placeholders_only(tokenizer):
    near = tokenizer.encode("dog <ImageHere>\n\n dog")
    assert near == tokenizer.encode("dog<ImageHere>dog")
    assert tokenizer.encode("dog </s> dog") != tokenizer.encode("dog</s>dog")


def test_a_prompt_keeps_white_space_around_placeholders(tokenizer):
    assert tokenizer.encode_prompt("dog <ImageHere> dog", [1]) != tokenizer.encode_prompt(
        "dog<ImageHere>dog", [1]
    )


@pytest.mark.parametrize("media", [[], [4], [4, 4, 4]])
def test_a_prompt_needs_its_media(tokenizer, media):
    with pytest.raises(PromptError, match=f"got 2 <ImageHere>, .*expected {len(media)} "):
        tokenizer.encode_prompt("<ImageHere> and <ImageHere>", media)


def test_decoding_drops_specials_and_placeholders(tokenizer):
    ids = [LLAMA.bos, *tokenizer.encode("a dog runs"), tokenizer.image_here, LLAMA.eos, LLAMA.pad]
    assert tokenizer.decode(ids) == "a dog runs"


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.model, expected a tokenizer"):
        Tokenizer(tmp_path / "nowhere.model")


@pytest.mark.parametrize("text", ["", "a dog", "a dog.", "red boats?", "grass\n", "3"])
def test_stop_ids_end_every_answer(tokenizer, text):
    ids = tokenizer.encode(f" {text}###")
    stops = tokenizer.stop_ids("###")
    assert any(tuple(ids[-len(s) :]) == s for s in stops)
    assert all(tokenizer.decode(s).strip() == "###" for s in stops)


def test_placeholders_follow_the_embedding_table(tokenizer):
    """A Vicuna folder has a row for [PAD], of which sentencepiece's file knows nothing."""
    wide = Tokenizer(MODEL, vocab=tokenizer.vocab + 1)
    assert wide.encode("<ImageHere><AudioHere>") == [tokenizer.vocab + 1, tokenizer.vocab + 2]
    assert wide.encode("a dog") == tokenizer.encode("a dog")
    assert wide.decode([*wide.encode("a dog"), tokenizer.vocab]) == "a dog"


def test_an_embedding_table_must_hold_all_pieces(tokenizer):
    with pytest.raises(ValueError, match=f"got {tokenizer.vocab} pieces, expected at most the 9 "):
        Tokenizer(MODEL, vocab=9)


def test_an_added_token_without_a_row_is_not_said(tokenizer_json, tmp_path):
    """Llama-2's first release has a <pad> behind as many pieces as its table has rows."""
    tokenizers = pytest.importorskip("tokenizers")
    padded = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    rows = padded.get_vocab_size()
    padded.add_special_tokens(["<pad>"])
    padded.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path, rows)
    assert tokenizer.encode("a<pad><ImageHere>") == [*tokenizer.encode("a"), rows]
    assert Tokenizer(tmp_path).image_here == rows + 1


def test_a_folder_s_own_sentencepiece_model_comes_first(tmp_path, tokenizer_json):
    shutil.copy(tokenizer_json, tmp_path)
    assert Tokenizer(tmp_path).encode("a dog") == Tokenizer(MODEL).encode("a dog")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json: is no tokenizer\.json .*fetch it anew"):
        Tokenizer(tmp_path)
    shutil.copy(MODEL, tmp_path)
    assert Tokenizer(tmp_path).encode("a dog") == Tokenizer(MODEL).encode("a dog")


def test_a_damaged_model_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x01\x02")
    with pytest.raises(ValueError, match=r"tokenizer\.model: is no sentencepiece model"):
        Tokenizer(tmp_path)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A byte-level vocabulary without a bos in front, whose first id is a word."""
    pytest.importorskip("tokenizers")
    from vljax.convert import vocabulary

    pieces = ["a", "d", "o", "g", "Ġ", "do", "Ġdo", "Ġdog", "1", "2", "[end]", "[none]", "[begin]"]
    kinds = [vocabulary.Kind.NORMAL] * 10 + [vocabulary.Kind.CONTROL] * 3
    model = vocabulary.byte_level(pieces, kinds, ["d o", "Ġ do", "Ġdo g"])
    folder = tmp_path_factory.mktemp("words")
    names = {"bos": "[begin]", "eos": "[end]", "unk": "[none]", "pad": "[end]"}
    vocabulary.write(model, names, False, folder)
    return folder


def test_special_ids_are_the_file_s(words):
    tokenizer = Tokenizer(words)
    assert tokenizer.special == Special(pad=11, bos=12, eos=10)  # padding must not look like an end
    assert tokenizer.encode("a dog[end]12", bos=True) == [0, 7, 10, 8, 9]
    assert tokenizer.decode([12, 0, 7, 10, 11, 13]) == "a dog"
    assert tokenizer.encode("dog <ImageHere>\n<AudioHere>") == [5, 3, 13, 14]
    assert tokenizer.stop_ids("[end]") == ((10,),)


def test_a_bos_stands_in_front_where_the_file_says_so(words, tmp_path):
    shutil.copytree(words, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "tokenizer_config.json"
    said = json.loads(config.read_text()) | {"add_bos_token": True, "bos_token": {"content": "a"}}
    config.write_text(json.dumps(said))
    assert Tokenizer(tmp_path).encode(" dog", bos=True) == [0, 7]


@pytest.mark.parametrize("missing", ["bos", "eos", "unk"])
def test_a_file_that_does_not_name_its_special_tokens_is_refused(words, tmp_path, missing):
    shutil.copytree(words, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "tokenizer_config.json"
    said = json.loads(config.read_text())
    del said[f"{missing}_token"]
    config.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=f"got .*{missing} missing.*; expected ids for bos, eos"):
        Tokenizer(tmp_path)
