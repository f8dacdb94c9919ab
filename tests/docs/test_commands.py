"""What the documentation tells readers to run, is run; see ``pages``."""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.docs import pages
from vljax.cli.main import main

ALL = [fence for page in pages.PAGES for fence in pages.fences(page)]
QUICK = sorted({f.page for f in ALL if f.runs == "quick"})
SLOW = sorted({f.page for f in ALL if f.runs == "slow"})
NOT_RUN = [f for f in ALL if not f.runs and any(True for _ in pages.vljax_calls(f))]
DISPATCHERS = {"vljax bench"}  # a parser of the first word alone; another follows


def name(thing) -> str:
    return str(thing.relative_to(pages.ROOT)) if isinstance(thing, Path) else thing.place


def test_every_fence_says_what_becomes_of_it():
    assert len(ALL) > 40
    assert [f.place for f in ALL if f.told is None] == []
    for fence in ALL:
        if fence.told.startswith("run:"):
            assert fence.runs in ("quick", "slow"), fence.place
            assert set(fence.words[1:]) <= set(pages.OPTIONS), fence.place
        else:
            assert len(fence.told.removeprefix("not run here:").split()) >= 3, fence.place


class Parsed(Exception):
    """The flags are known; nothing else is done."""


def known(parser, args, namespace=None, parse=argparse.ArgumentParser.parse_known_args):
    found, rest = parse(parser, args, namespace)
    if parser.prog in DISPATCHERS:
        return found, rest
    unknown = [word for word in rest if not word.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if getattr(found, "config", None):
        from vljax.cli.configs import load_config

        load_config(found.config, rest)
    raise Parsed


@pytest.fixture
def parsing(monkeypatch):
    """A ``main`` that raises Parsed where the work would begin."""
    monkeypatch.chdir(pages.ROOT)
    monkeypatch.setenv("VLJAX_TRACEBACK", "1")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", known)

    def parse(argv):
        monkeypatch.setattr(sys, "argv", ["vljax", *argv])  # which ml_collections looks at
        main(argv)

    return parse


@pytest.mark.parametrize("fence", NOT_RUN, ids=name)
def test_flags_of_what_is_not_run_exist(fence, parsing, capsys):
    for argv in pages.vljax_calls(fence):
        try:
            with pytest.raises(Parsed):
                parsing(argv)
        except SystemExit:
            pytest.fail(f"{fence.place}: vljax {' '.join(argv)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize(
    "argv",
    [
        ["plan", "--topologies", "v5e:4x4", "--config=configs/vision_pretrain.py"],
        ["train", "--config=configs/tiny.py:stage=text", "--config.stepz=3"],
        ["bench", "serve", "--client", "3", "--wrong"],
        ["train", "--config=configs/tiny.py:stage=txt"],
    ],
)
def test_a_flag_that_does_not_exist_is_found(argv, parsing):
    with pytest.raises((SystemExit, ValueError)):
        parsing(argv)


def test_extras_exist():
    setup = (pages.ROOT / "setup.py").read_text()
    named = {
        extra
        for page in pages.PAGES
        for group in re.findall(r"pip install [^\n`]*?(?:\.|vljax)\[([\w,-]+)\]", page.read_text())
        for extra in group.split(",")
    }
    assert {"dev", "data", "convert", "serve"} <= named
    assert {extra for extra in named if not re.search(rf'^ +"{extra}": ', setup, re.M)} == set()


@pytest.mark.parametrize(
    ("shown", "got", "is_same"),
    [
        ("A drum.", "A drum.\n", True),
        ("A drum.", "A bird.", False),
        ("-10.09  2.257e+04  It stays.", "-10.08 2.241e+04 It stays.", True),
        ("-10.09", "-14.09", False),
        ("22,104,064 trainable", "22,104,064 trainable", True),
        ("22,104,064 trainable", "22,104,065 trainable", False),
        ("A drum.", "", False),
    ],
)
def test_output_is_compared(shown, got, is_same):
    assert pages.same(shown, got) == is_same


def test_a_wrong_answer_in_a_fence_fails(tmp_path):
    reader = pages.Reader(tmp_path, os.environ)
    place = pages.ROOT / "README.md"
    for language, text in (
        ("python", "1 + 1\n# 3"),
        ("console", "$ echo 2\n3"),
        ("bash", "exit 3"),
        ("bash", "false\ntrue"),
    ):
        with pytest.raises(AssertionError):
            reader.follow(pages.Fence(place, 1, language, text, "run: quick"))
    reader.follow(pages.Fence(place, 1, "python", "1 + 1\n# 2\n'a'\n# 'a'", "run: quick"))
    reader.follow(pages.Fence(place, 1, "console", "$ echo 2\n2\n$ echo a\na", "run: quick"))


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return pages.environment(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def files(tmp_path_factory, env):
    """The folder with what the tutorial's reader has made."""
    folder = tmp_path_factory.mktemp("files")
    [maker] = [f for f in pages.fences(pages.MAKER) if "makes the files" in f.words]
    pages.Reader(folder, env).follow(maker)
    assert all((folder / name).stat().st_size > 1000 for name in pages.FILES)
    return folder


def follow(page, runs, tmp_path, env, files):
    folder = pages.checkout(tmp_path / "vljax")
    if pages.ANCHOR in page.read_text():  # else its readers have none
        for file in pages.FILES:
            shutil.copy(files / file, folder)
    reader = pages.Reader(folder, env)
    try:
        for fence in pages.fences(page):
            if fence.runs in runs:
                reader.follow(fence)
    finally:
        reader.leave()


@pytest.mark.parametrize("page", QUICK, ids=name)
def test_quick_commands_of_a_page(page, tmp_path, env, files):
    follow(page, {"quick"}, tmp_path, env, files)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name)
def test_commands_of_a_page(page, tmp_path, env, files):
    follow(page, {"quick", "slow"}, tmp_path, env, files)
