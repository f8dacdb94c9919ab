"""Runs a python fence: of an expression with a comment below it, that is what it has to give."""

import ast
import re
import sys
from pathlib import Path


def main(path: str) -> int:
    text = Path(path).read_text()
    lines = text.splitlines()
    names: dict[str, object] = {"__name__": "__main__"}
    for node in ast.parse(text).body:
        assert node.end_lineno is not None
        shown = told(lines[node.end_lineno :])
        if not (isinstance(node, ast.Expr) and shown):
            exec(compile(ast.Module([node], []), path, "exec"), names)
            continue
        got = repr(eval(compile(ast.Expression(node.value), path, "eval"), names))
        if got != shown:
            print(f"{ast.unparse(node)}\nshown: {shown}\ngot:   {got}", file=sys.stderr)
            return 1
    return 0


def told(below: list[str]) -> str:
    """The comment that begins right below, as one line."""
    found = []
    for line in below:
        if not (comment := re.fullmatch(r"# (.*)", line)):
            break
        found.append(comment[1])
    return " ".join(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
