"""What the site's pages are filled with as it is built: what each verb's --help says."""

import contextlib
import io
import os
import re
from typing import Any

HELP = re.compile(r"^<!-- help: (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``<!-- help: VERB -->`` on a line of its own becomes the verb's help."""
    return HELP.sub(lambda found: f"```text\n{told(found[1])}\n```", markdown)


def told(verb: str) -> str:
    """What ``vljax VERB --help`` prints, 88 columns wide."""
    from vljax.cli.main import main

    os.environ["COLUMNS"] = "90"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    if not out.getvalue().startswith("usage: "):
        raise ValueError(f"help: got nothing of 'vljax {verb}', expected a verb of vljax")
    return out.getvalue().rstrip()
