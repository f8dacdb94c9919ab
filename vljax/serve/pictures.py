"""PNGs of what the model is given of a file."""

import io

import numpy as np

from vljax.data.preview import heat
from vljax.serve.reading import Upload


def picture(upload: Upload, what: str, index: int) -> bytes | None:
    """``what``: "frames", or "sounds" for the mel spectrogram of a sound's part; high is up."""
    if what == "frames" and upload.frames is not None and index < len(upload.frames):
        return _png(upload.frames[index])
    if what == "sounds" and upload.mel is not None and index < len(upload.mel):
        return _png(heat(upload.mel)[index])
    return None


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
