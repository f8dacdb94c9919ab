"""Video-LLaMA in JAX/Flax. ``vljax.load("tiny").chat("clip.mp4", "What happens?")``"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """``load`` on first use, so that ``import vljax`` costs nothing."""
    if name == "load":
        from vljax.obtain import load

        return load
    raise AttributeError(f"module 'vljax' has no attribute {name!r}")
