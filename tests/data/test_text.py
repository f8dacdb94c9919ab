"""Ids, labels and masks against the original's, and the layouts that are our own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from vljax.data.text import (
    CHATML,
    IGNORE,
    LLAMA2,
    TEMPLATES,
    VICUNA,
    TextExample,
    caption_example,
    close_turn,
    collate,
    conversation_example,
    conversation_text,
    expand,
    open_turn,
    spoken,
)
from vljax.data.tokenizer import LLAMA, PromptError, Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "text_cases.json").read_text())
FAMILIES = {"vicuna": VICUNA, "llama_v2": LLAMA2}
QUERIES = {"video": 4, "image": 4, "audio": 3}
TWO_TURNS = (("human", "what is red?"), ("gpt", "a boat."), ("human", "who?"), ("gpt", "a dog."))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "llm.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """The embeddings that the original's inputs were looked up in."""
    with np.load(GOLDEN / "weights.npz") as file:
        return file["llama_model.model.embed_tokens.weight"]


def conversation(tokenizer: Tokenizer, name: str) -> TextExample:
    case = CASES["conversations"][name]
    turns = [(t["from"], t["value"]) for t in case["sources"]]
    template = FAMILIES[case["model_type"]]
    return conversation_example(tokenizer, turns, template, case["n_query"])


def captions(tokenizer: Tokenizer, name: str) -> list[TextExample]:
    case = CASES["caption"]
    prompt = None
    if name != "caption_noprompt":
        template = case[name.replace("caption", "template")]
        prompt = template.format(case["prompt_file_lines"][0])
    end, limit = case["end_sym"][name], case["max_txt_len"][name]
    return [
        caption_example(tokenizer, t, QUERIES["video"], prompt, end, limit) for t in case["texts"]
    ]


@pytest.mark.parametrize("name", CASES["conversations"])
def test_conversation_ids_and_labels(tokenizer, golden, name):
    got = conversation(tokenizer, name)
    np.testing.assert_array_equal(got.tokens, golden[f"ids/{name}/input_ids"])
    np.testing.assert_array_equal(got.labels, golden[f"ids/{name}/labels"])


def test_every_golden_conversation_is_compared(golden):
    names = {n.removeprefix("ids/").rsplit("/", 1)[0] for n in golden if n.startswith("ids/")}
    assert names == set(CASES["conversations"])


@pytest.mark.parametrize("name", ["video_vicuna", "video_llama2", "image_vicuna", "image_llama2"])
def test_collated_conversations(tokenizer, golden, name):
    examples = [conversation(tokenizer, f"{name}/{i}") for i in range(2)]
    batch = collate(examples, int(golden[f"multi_{name}/seq_len"]))
    np.testing.assert_array_equal(batch["tokens"], golden[f"multi_{name}/input_ids"])
    np.testing.assert_array_equal(batch["labels"], golden[f"multi_{name}/labels"])
    np.testing.assert_array_equal(batch["mask"], golden[f"multi_{name}/pad_mask"])
    np.testing.assert_array_equal(batch["mask"], golden[f"multi_{name}/attention_mask"])
    assert {n: a.dtype.name for n, a in batch.items()} == {
        "tokens": "int32",
        "labels": "int32",
        "mask": "bool",
    }


@pytest.mark.parametrize("name", ["caption_noprompt", "caption_vicuna", "caption_llama2"])
def test_captions(tokenizer, golden, table, name):
    batch = collate(captions(tokenizer, name), int(golden[f"{name}/seq_len"]))
    np.testing.assert_array_equal(batch["labels"], golden[f"{name}/labels"])
    np.testing.assert_array_equal(batch["mask"], golden[f"{name}/attention_mask"])
    embeddings = golden.get(f"{name}/inputs_embeds")
    if embeddings is not None:
        words = batch["mask"] & (batch["tokens"] < tokenizer.vocab)
        np.testing.assert_array_equal(table[batch["tokens"][words]], embeddings[words])


@pytest.mark.parametrize("name", CASES["inference"])
def test_chat_prompts(tokenizer, golden, table, name):
    """As many embeddings as the original, and its very rows where no media stand."""
    want = golden[f"gen_{name}/prefix_embeds"][0]
    media = [QUERIES["audio"], QUERIES["video"]] if "audio" in name else [QUERIES["video"]]
    ids = np.array(tokenizer.encode_prompt(CASES["inference"][name]["prompt"], media))
    assert len(ids) == len(want)
    words = ids != tokenizer.image_here
    assert (~words).sum() == sum(media)
    np.testing.assert_array_equal(table[ids[words]], want[words])


def taught(example: TextExample) -> list[int]:
    np.testing.assert_array_equal(
        example.labels[example.labels != IGNORE], example.tokens[example.labels != IGNORE]
    )
    return example.labels[example.labels != IGNORE].tolist()


def test_clean_masking_teaches_answers_and_their_ends(tokenizer):
    got = conversation_example(tokenizer, TWO_TURNS, VICUNA, 0, masking="clean")
    assert tokenizer.decode(taught(got)) == "a boat.### a dog.###"
    asked = open_turn("what is red?", VICUNA)
    first = np.flatnonzero(got.labels != IGNORE)[0]
    assert tokenizer.decode(got.tokens[:first]) == tokenizer.decode(tokenizer.encode(asked))


def test_clean_masking_teaches_llama2_its_end_of_turn(tokenizer):
    got = taught(conversation_example(tokenizer, TWO_TURNS, LLAMA2, 0, masking="clean"))
    assert got.count(LLAMA.eos) == 2
    assert got[-1] == LLAMA.eos
    assert tokenizer.decode(got).split() == ["a", "boat.", "a", "dog."]


@pytest.mark.parametrize("family", ["vicuna", "llama2"])
def test_clean_training_text_is_the_chat_s(tokenizer, family):
    template = TEMPLATES[family]
    got = conversation_example(tokenizer, TWO_TURNS, template, 0, masking="clean")
    text = (
        open_turn("what is red?", template)
        + close_turn("a boat.", template)
        + open_turn("who?", template, first=False)
        + close_turn("a dog.", template)
    )
    assert got.tokens.tolist() == tokenizer.encode_prompt(text, [])


def test_layouts_as_strings():
    assert conversation_text(TWO_TURNS, VICUNA) == (
        "\n\n###Human: what is red?\n###Assistant: a boat.\n###Human: who?\n"
        "###Assistant: a dog.\n###"
    )
    assert conversation_text(TWO_TURNS, LLAMA2) == (
        "[INST] <<SYS>>\n \n<</SYS>>\n\nwhat is red? [/INST] a boat. </s>"
        "<s>[INST] who? [/INST] a dog. </s>"
    )


def test_llama2_drops_a_leading_answer():
    assert conversation_text([("gpt", "hello"), *TWO_TURNS], LLAMA2) == conversation_text(
        TWO_TURNS, LLAMA2
    )


@pytest.mark.parametrize("at", [1, 2])
def test_llama2_roles_must_alternate(tokenizer, at):
    turns = [*TWO_TURNS[:at], TWO_TURNS[at - 1], *TWO_TURNS[at:]]
    with pytest.raises(PromptError, match=f"turn {at} is by '{turns[at][0]}' again"):
        conversation_example(tokenizer, turns, LLAMA2, 0)


@pytest.mark.parametrize("masking", ["original", "clean"])
def test_truncation_may_not_cut_placeholders(tokenizer, masking):
    turns = [("human", expand("<image>\nwhat is red?", 4)), ("gpt", "a boat.")]
    whole = conversation_example(tokenizer, turns, VICUNA, 4, masking=masking)
    last = np.flatnonzero(whole.tokens == tokenizer.image_here)[-1]
    kept = conversation_example(tokenizer, turns, VICUNA, 4, int(last) + 1, masking)
    np.testing.assert_array_equal(kept.tokens, whole.tokens[: last + 1])
    with pytest.raises(PromptError, match=f"got 3 media placeholders within {last} tokens"):
        conversation_example(tokenizer, turns, VICUNA, 4, int(last), masking)


def test_a_caption_s_limit_may_cut_its_end(tokenizer):
    words = tokenizer.encode("a dog runs###")
    got = caption_example(tokenizer, "a dog runs", 2, end="###", limit=len(words) - 1)
    assert taught(got) == words[:-1]
    assert got.tokens[:3].tolist() == [LLAMA.bos, tokenizer.image_here, tokenizer.image_here]


def test_unknown_words_are_not_taught(tokenizer):
    got = caption_example(tokenizer, "a <unk> dog", 1)
    assert LLAMA.pad in got.tokens
    assert LLAMA.pad not in got.labels


def test_expand_replaces_every_image_mark():
    assert expand("<image>\nand <image>?", 2, ("<Video>", "</Video>")) == (
        "<Video><ImageHere><ImageHere></Video>\nand <Video><ImageHere><ImageHere></Video>?"
    )


def test_collate_refuses_what_is_too_long():
    example = TextExample(np.ones(5, np.int32), np.ones(5, np.int32))
    with pytest.raises(PromptError, match="example 0: got 5 tokens, expected at most 4"):
        collate([example], 4)


def test_chatml_is_a_layout_of_its_own():
    text = open_turn("who?", CHATML) + close_turn("a dog.", CHATML)
    text += open_turn("{why}?", dataclasses.replace(CHATML, system="Be brief."), first=False)
    assert text == (
        f"<|im_start|>system\n{CHATML.system}<|im_end|>\n<|im_start|>user\nwho?<|im_end|>\n"
        "<|im_start|>assistant\na dog.<|im_end|>\n<|im_start|>user\n{why}?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    told = open_turn("who?", dataclasses.replace(CHATML, system="Be brief."))
    assert told.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_a_layout_that_the_original_has_not_is_taught_cleanly_only(tokenizer):
    with pytest.raises(PromptError, match=r"got original, .* say clean"):
        conversation_example(tokenizer, TWO_TURNS, CHATML, 0)


@pytest.mark.parametrize(
    ("template", "text", "answer"),
    [
        (VICUNA, " a dog.###Human: who", "a dog."),
        (VICUNA, "Assistant: a dog.", "a dog."),
        (LLAMA2, " a dog. ", "a dog."),
        (CHATML, "an assistant: a dog", "an assistant: a dog"),
    ],
)
def test_what_is_spoken(template, text, answer):
    assert spoken(text, template) == answer


@pytest.mark.parametrize("template", [VICUNA, LLAMA2, CHATML])
def test_templates_agree_with_their_captions(template):
    """What ends a caption ends an answer, too, and the prompt's frame is the chat's."""
    assert close_turn("", template).strip() == template.end == template.stop
    assert template.caption.count("{}") == 1
