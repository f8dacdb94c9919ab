"""The site builds without a warning and fetches nothing from elsewhere; links lead somewhere."""

import html.parser
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT

REPOSITORY = "https://github.com/vljax/vljax/"
LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
MARKDOWN = [*PAGES, ROOT / "CHANGELOG.md"]


def links(page: Path) -> list[str]:
    """Where a page points to; code is no link."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return LINK.findall(re.sub(r"`[^`]*`", "", text))


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub and the site's toc make it."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", words).strip())


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    docstrings = re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.MULTILINE)
    return {slug(heading) for heading in headings} | set(docstrings)


def wrong(page: Path, link: str) -> str:
    """What is wrong with a link into the repository, or nothing."""
    if link.startswith(REPOSITORY) and re.match("(blob|tree)/main/", link.removeprefix(REPOSITORY)):
        target, base = link.removeprefix(REPOSITORY).split("/main/", 1)[1], ROOT
    elif re.match(r"\w+:", link):
        return ""
    else:
        target, base = link, page.parent
    path, _, anchor = unquote(target).partition("#")
    file = base / path if path else page
    if not file.exists():
        return f"{page.relative_to(ROOT)}: {link}: there is no {path}"
    if anchor and anchor not in anchors(file):
        return f"{page.relative_to(ROOT)}: {link}: {path} has no heading for #{anchor}"
    return ""


def test_links_lead_somewhere():
    found = [(page, link) for page in MARKDOWN for link in links(page)]
    assert len(found) > 100
    assert [told for page, link in found if (told := wrong(page, link))] == []


@pytest.mark.parametrize(
    "link", ["docs/lost.md", "docs/index.md#lost", f"{REPOSITORY}tree/main/lost"]
)
def test_a_link_to_nowhere_is_found(link):
    assert wrong(ROOT / "README.md", link)


def test_every_picture_says_what_it_shows():
    for page in MARKDOWN:
        assert not re.findall(r"!\[\s*\]\(", page.read_text()), page


def test_the_description_on_pypi_leads_to_the_repository():
    """There are no files beside it there."""
    done = subprocess.run(
        [sys.executable, "setup.py", "--long-description"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = LINK.findall(done.stdout)
    assert len(found) > 20
    assert [link for link in found if not link.startswith("https://")] == []
    assert f"({REPOSITORY}raw/main/docs/serve/serve.png)" in done.stdout
    assert f"({REPOSITORY}blob/main/docs/how-to/train.md)" in done.stdout


class Fetched(html.parser.HTMLParser):
    """Addresses that a browser fetches by itself when it shows a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "video", "audio", "source"):
            self.found += [values["src"]] if values.get("src") else []
        elif tag == "link" and values.get("rel") in ("stylesheet", "preload", "preconnect", "icon"):
            self.found.append(values["href"] or "")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = sorted(p for p in tmp_path.rglob("*.html") if "plan/7b.html" not in str(p))
    assert len(built) > 25
    for page in built:
        outside = [a for a in Fetched(page.read_text()).found if re.match("(https?:)?//", a)]
        assert outside == [], page
    cli = (tmp_path / "reference/cli/index.html").read_text()
    assert "usage: vljax chat" in cli and "<!-- help" not in cli
    python = (tmp_path / "reference/python/index.html").read_text()
    assert 'id="vljax.generate.chat.Model.chat"' in python and "Raises MediaError" in python
    assert not (tmp_path / "_hooks.py").exists()
