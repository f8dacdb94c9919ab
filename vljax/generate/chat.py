"""The public face: ``vljax.load("tiny").chat("clip.mp4", "What happens?")``."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from vljax.data.video import is_image
from vljax.generate.embed import Embedding, embed, read_sight_tower, sight_size
from vljax.generate.engine import Engine, Request, load_engine
from vljax.generate.long import POLICIES, WINDOW, Policy, read_long
from vljax.generate.media import FRAMES, Encoded, Media, has_picture, read_media, read_pair
from vljax.generate.rows import as_request
from vljax.generate.sampling import Sampling
from vljax.generate.session import Session
from vljax.store import Tree

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parent.parent
TINY_WEIGHTS = PACKAGE / "weights" / "tiny"
SAMPLE = PACKAGE / "samples" / "sample.mp4"


class Conversation:
    """Several turns about the same media; each reads only what is new."""

    def __init__(
        self, engine: Engine, media: Media | Encoded | None, sampling: Sampling = Sampling()
    ):
        self.engine, self.media, self.sampling = engine, media, sampling
        self.history: tuple[tuple[str, str], ...] = ()
        self.session = Session(engine)

    def ask(self, question: str) -> str:
        """The answer, which later questions see."""
        request, seed = Request(question, self.media, self.history), len(self.history)
        if self.sampling.beams > 1:
            answer = self.engine.answer([request], self.sampling, seed)[0]
        else:
            answer = self.session.answer(request, self.sampling, seed)
        self._remember(question, answer)
        return answer

    def stream(self, question: str) -> Iterator[str]:
        """The same answer in pieces, as they are written; later questions see it once it is whole.

        With beams it comes in one piece.
        """
        if self.sampling.beams > 1:
            yield self.ask(question)
            return
        request, seed = Request(question, self.media, self.history), len(self.history)
        pieces = []
        for piece in self.session.stream(request, self.sampling, seed):
            pieces.append(piece)
            yield piece
        self._remember(question, "".join(pieces))

    def _remember(self, question: str, answer: str) -> None:
        self.history += (("human", question), ("gpt", answer))


@dataclasses.dataclass
class Model:
    """A loaded model. ``name`` is what it was loaded as, ``folder`` where its weights lie."""

    engine: Engine
    name: str
    folder: Path | None = None

    def chat(
        self,
        clip: str | Path,
        question: str,
        *,
        look: bool = True,
        listen: bool = True,
        policy: str | Policy = "uniform",
        frames: int = 0,
        window: float = WINDOW,
    ) -> str:
        """Answers one question about a clip or an image file.

        Args:
          look, listen: whether the picture and the sound are used.
          policy: for long clips, see ``generate.long.POLICIES``. frames: how many to look at, of
            the clip or of each window, 0 for the policy's own. window: seconds.

        Raises MediaError for a file that is not there or can't be read, ValueError for a policy
        that does not exist or does not fit the clip.
        """
        talk = self.conversation(
            clip, look=look, listen=listen, policy=policy, frames=frames, window=window
        )
        return talk.ask(question)

    def conversation(
        self,
        clip: str | Path,
        *,
        look: bool = True,
        listen: bool = True,
        sampling: Sampling = Sampling(),
        policy: str | Policy = "uniform",
        frames: int = 0,
        window: float = WINDOW,
    ) -> Conversation:
        """Opens a file for several questions; arguments as ``chat``'s."""
        senses = self.engine.senses(look, listen)
        media = read(self.engine, clip, *senses, policy=policy, frames=frames, window=window)
        return Conversation(self.engine, media, sampling)

    def generate(
        self,
        requests: Sequence[Request | Mapping[str, Any] | tuple[str | Path, str]],
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> list[str]:
        """Answers many requests, batched; at temperature 0 the batch does not change an answer.

        A request is a file and a question, the fields of a line for ``vljax run`` (without id and
        sampling), or a Request. Raises MediaError, and ValueError for fields that are wrong.
        """
        read = functools.cache(functools.partial(read_pair, size=self.engine.size))
        asked = [
            r if isinstance(r, Request) else as_request(r, self.engine.senses, read)
            for r in requests
        ]
        return self.engine.answer(asked, sampling, seed)

    @overload
    def embed(self, files: str | Path) -> Embedding: ...  # type: ignore[overload-overlap]
    @overload
    def embed(self, files: Sequence[str | Path]) -> list[Embedding]: ...
    def embed(self, files: str | Path | Sequence[str | Path]) -> Embedding | list[Embedding]:
        """What the towers make of images, clips and sounds: see ``Embedding``.

        Raises MediaError for a file that is not there or can't be read.
        """
        if isinstance(files, str | Path):
            return self.embed([files])[0]
        size = self.engine.size
        looks = [has_picture(file) for file in files]
        pairs = list(zip(files, looks, strict=True))
        media = [read_media(file, size, look) for file, look in pairs]
        if not self.sight_tower:
            return embed(self.engine, media, media, {})
        larger = sight_size(size)
        same = larger == size
        sights = [
            m if same or not look else read_media(file, larger, True, False)
            for m, (file, look) in zip(media, pairs, strict=True)
        ]
        return embed(self.engine, media, sights, self.sight_tower)

    @functools.cached_property
    def sight_tower(self) -> Tree:
        """ImageBind's for pictures, which only ``embed`` needs; {} where there is none."""
        return {} if self.folder is None else read_sight_tower(self.folder, self.engine.dtype)


def read(
    engine: Engine,
    clip: str | Path,
    look: bool = True,
    listen: bool = True,
    *,
    policy: str | Policy = "uniform",
    frames: int = 0,
    window: float = WINDOW,
) -> Media | Encoded:
    """A file as the engine takes it; arguments as ``Model.chat``'s."""
    if isinstance(policy, str):
        if policy not in POLICIES:
            known = ", ".join(POLICIES)
            raise ValueError(f"policy: got {policy}, expected one of {known}")
        policy = POLICIES[policy]
    if is_image(clip) or (policy.fit == "table" and frames in (0, FRAMES)):
        return read_media(clip, engine.size, look, listen)
    return read_long(clip, engine, policy, frames=frames, window=window, look=look, listen=listen)


def load(
    name: str | Path = "tiny",
    dtype: Any = None,
    *,
    quantise: str = "",
    quantise_vit: str = "",
    tell: Callable[[str], None] = log.info,
    sharding: str = "",
) -> Model:
    """Loads "tiny", which comes with the package, or a folder of weights.

    Args:
      dtype: to hold them and compute in; by default, what the folder says.
      quantise: "int8" or "int4", to hold the language model in; quantise_vit: "int8", the ViT.
      tell: is told beforehand, in a line, what the weights take and whether they fit.
      sharding: a strategy over all devices, as in training ("fsdp_tp"); else the first device.

    Raises WeightsError for a folder that holds none.
    """
    folder = TINY_WEIGHTS if str(name) == "tiny" else Path(name)
    engine = load_engine(folder, dtype, quantise, quantise_vit, tell, sharding)
    return Model(engine, str(name), folder)
