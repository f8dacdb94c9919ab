"""Values of a JSON object by name, each of the type that it must have."""

from typing import Any, TypeVar

from vljax.serve.limits import wrong

D = TypeVar("D")
Object = dict[str, Any]


def text(asked: Object, name: str) -> str | None:
    return _typed(asked, name, str, None)


def boolean(asked: Object, name: str, default: bool) -> bool:
    return _typed(asked, name, bool, default)


def mapping(asked: Object, name: str) -> Object:
    return _typed(asked, name, dict, {})


def integer(asked: Object, name: str, default: D) -> int | D:
    value = _typed(asked, name, int, default)
    if value is not default and (isinstance(value, bool) or abs(value) >= 2**63):
        raise wrong(f"{name}: got {short(value)}, expected a whole number", name)
    return value


def number(asked: Object, name: str, default: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise wrong(f"{name}: got {short(value)}, expected a number", name)
    return float(value)


def _typed(asked: Object, name: str, kind: type, default: Any) -> Any:
    """The value, or ``default`` where there is none, as null is. Raises Refusal."""
    value = asked.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise wrong(f"{name}: got {short(value)}, expected {NAMES[kind]}", name)
    return value


NAMES = {str: "text", bool: "true or false", int: "a whole number", dict: "an object"}


def short(value: Any) -> str:
    told = repr(value) if not isinstance(value, list | dict) else f"a JSON {type(value).__name__}"
    return told if len(told) < 60 else f"{told[:57]}..."
