"""Do answers about sound come from the sound? Every clip is asked about with its sound exchanged.

The picture shows another thing than what is heard, so that reading the sound off the picture is
told apart from hearing it. Each clip has two yes/no questions besides, about a sound that is there
and one that is not; half of those that are not there are seen.

The towers read a clip once; what is exchanged is what they made of its sound. Everything said is
kept in a file, if one is named, from which a run that was stopped goes on.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljax.data.decode_worker import Decoders
from vljax.evaluate.naming import overlap, words
from vljax.evaluate.sound_clips import Labelled, read_all, vocabulary
from vljax.generate import long
from vljax.generate.engine import Engine, Request
from vljax.generate.likelihood import log_likelihoods
from vljax.generate.media import Encoded, Media
from vljax.generate.probe import silence
from vljax.generate.sampling import Sampling
from vljax.store import write_whole

CONDITIONS = {
    "real": "the clip's own sound",
    "muted": "silence",
    "swapped": "another clip's sound",
    "noise": "white noise of the same level",
    "none": "no sound at all",
}
VIEWS = {"alone": "without the picture", "beside": "with the picture beside it"}
YES, NO = "Yes.", "No."
_UNIFORM = long.POLICIES["uniform"]
Key = tuple[str, str, str, str]  # condition, view, clip, question
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A clip as the towers gave it back.

    Attributes:
      sound, noise: ImageBind's features [S, out]. sight: soft prompts [P, D], if it has a picture.
    """

    name: str
    heard: tuple[str, ...]
    shown: tuple[str, ...]
    sound: np.ndarray
    noise: np.ndarray
    sight: np.ndarray | None = None
    message: str = ""
    still: bool = False

    @property
    def seen_only(self) -> list[str]:
        """What the picture shows and the sound has not."""
        return [x for x in self.shown if not any(overlap(x, h) for h in self.heard)]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Is ``label`` heard in a case? ``kind``: how it was chosen; "" where it is heard."""

    case: int
    label: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Exam:
    """Cases, and what each is asked and given.

    Attributes:
      labels: all sounds. partners: whose sound a case is given in place of its own; None where no
        other clip's can be told from it. norm: the features' own length. silence: as ``sound``.
    """

    cases: Sequence[Case]
    labels: Sequence[str]
    partners: Sequence[int | None]
    probes: Sequence[Probe]
    silence: np.ndarray
    norm: float

    @property
    def views(self) -> list[str]:
        return [v for v in VIEWS if any(self.fits(i, v) for i in range(len(self.cases)))]

    def fits(self, case: int, view: str) -> bool:
        return view == "alone" or self.cases[case].sight is not None


@dataclasses.dataclass(frozen=True)
class Wording:
    """What is asked; ``{}`` stands for a sound with its article."""

    hear: str = "What do you hear?"
    yes_no: str = "Do you hear {}?"

    def __post_init__(self) -> None:
        if "{}" not in self.yes_no:
            raise ValueError(f"yes/no question: got {self.yes_no!r}, expected a {{}} in it")

    def yes_no_about(self, label: str) -> str:
        return self.yes_no.replace("{}", with_article(label))


@dataclasses.dataclass(frozen=True)
class Ask:
    """A question about a case in a condition: a key of CONDITIONS, or "x2" for a scale of 2."""

    case: int
    condition: str
    view: str
    question: str

    def key(self, exam: Exam) -> Key:
        """What tells it from others; where nothing is the clip's own, all clips have the same."""
        clip = exam.cases[self.case].name
        if self.view == "alone" and self.condition in ("none", "muted", "x0"):
            clip = ""
        if self.condition == "swapped":
            partner = exam.partners[self.case]
            assert partner is not None
            clip += f" with the sound of {exam.cases[partner].name}"
        return self.condition, self.view, clip, self.question


def read_exam(
    engine: Engine,
    clips: Sequence[Labelled],
    seed: int,
    decoders: Decoders,
    progress: Progress | None = None,
) -> tuple[Exam, list[str]]:
    """Runs the towers over every clip; and a sentence for each that can't be read.

    Raises ValueError where what is left has fewer than two sounds, WeightsError where the weights
    do not hear.
    """
    look, _ = engine.senses()
    if not engine.hears:
        raise ValueError("these weights have no audio branch; name a model that hears")
    cases, failed = [], []
    for i, (clip, found) in enumerate(read_all(clips, engine.size, look, seed, decoders)):
        if isinstance(found, str):
            failed.append(found)
        else:
            cases.append(_case(engine, f"{i} {clip.path.name}", clip, *found))
        if progress:
            progress(i + 1, len(clips))
    if not cases:
        raise ValueError(f"clips: none of {len(clips)} can be read: {failed[0] if failed else ''}")
    left = [Labelled(Path(c.name), c.heard, c.shown) for c in cases]
    return make_exam(cases, vocabulary(left), seed, engine), failed


def _case(engine: Engine, name: str, clip: Labelled, media: Media, noise: np.ndarray) -> Case:
    assert media.mel is not None
    sound, hiss = (long.sound_features(engine, mel) for mel in (media.mel, noise))
    seen = dataclasses.replace(media, mel=None)
    sight = None if media.frames is None else np.asarray(engine.encode([seen]))[0]
    return Case(name, clip.heard, clip.shown, sound, hiss, sight, media.message, media.still)


def make_exam(cases: Sequence[Case], labels: Sequence[str], seed: int, engine: Engine) -> Exam:
    rng = np.random.default_rng((seed, 17))
    quiet = long.sound_features(engine, silence(engine.size))
    probes = draw_probes(cases, labels, rng)
    partners = draw_partners(cases, rng)
    return Exam(cases, labels, partners, probes, quiet, engine.size.imagebind.sound.norm)


def draw_partners(cases: Sequence[Case], rng: np.random.Generator) -> list[int | None]:
    """For each case another whose sounds are neither heard nor shown in it."""

    def apart(one: Case, other: Case) -> bool:
        own = one.heard + one.shown
        return not any(overlap(a, b) for a in own for b in other.heard)

    found: list[int | None] = []
    for case in cases:
        fitting = [j for j, other in enumerate(cases) if apart(case, other)]
        found.append(int(rng.choice(fitting)) if fitting else None)
    return found


def draw_probes(
    cases: Sequence[Case], labels: Sequence[str], rng: np.random.Generator
) -> list[Probe]:
    """For each case a sound that is there and one that is not; as many of one as of the other.

    Half of those that are not there are things seen ("adversarial"), as far as pictures show what
    is not heard; of the others one half is drawn ("random") and one the most frequent sound of the
    exam ("popular"), neither of them seen. A case in which every sound is heard has no probe.
    """
    count = collections.Counter(label for case in cases for label in case.heard)
    absent = [_absent(case, labels) for case in cases]
    possible = [i for i in rng.permutation(len(cases)).tolist() if absent[i] or cases[i].seen_only]
    first = [i for i in possible if not absent[i]]  # nothing else can be asked of them
    rest = [i for i in possible if absent[i] and cases[i].seen_only]
    tricked = set([*first, *rest][: max(len(first), len(possible) // 2)])
    kinds: dict[int, str] = {}
    for number, i in enumerate(i for i in possible if i not in tricked):
        kinds[i] = ("random", "popular")[number % 2]
    probes = []
    for i in sorted(possible):
        kind = kinds.get(i, "adversarial")
        if kind == "adversarial":
            label = str(rng.choice(cases[i].seen_only))
        elif kind == "random":
            label = str(rng.choice(absent[i]))
        else:
            label = max(absent[i], key=lambda x: count[x])
        probes += [Probe(i, str(rng.choice(cases[i].heard))), Probe(i, label, kind)]
    return probes


def _absent(case: Case, labels: Sequence[str]) -> list[str]:
    """Sounds of the exam that are neither heard nor seen."""
    own = case.heard + case.shown
    return [x for x in labels if not any(overlap(x, o) for o in own)]


def with_article(label: str) -> str:
    """A label as a question names it: "an engine"; with its own article, plurals as they are."""
    name = label.split("|")[0].strip()
    last = name.split()[-1].lower()
    found = words(name)
    has_one = name.lower().startswith(("a ", "an ", "the ", "some "))
    if has_one or not found or found[-1] != last or last.endswith("ing"):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def asks(exam: Exam, wording: Wording, scales: Sequence[float]) -> list[Ask]:
    """Every open question: in all conditions, and with the features at all scales."""
    names = [*CONDITIONS, *(scale_name(exam, s) for s in [0.0, *scales])]
    pairs = [(c, v) for c in dict.fromkeys(names) for v in exam.views]
    return [ask for pair in pairs for ask in asks_of(exam, wording, *pair)]


def asks_of(exam: Exam, wording: Wording, condition: str, view: str) -> list[Ask]:
    """The open question to every case that fits."""
    return [
        Ask(i, condition, view, wording.hear)
        for i in range(len(exam.cases))
        if exam.fits(i, view) and (condition != "swapped" or exam.partners[i] is not None)
    ]


def yes_no_asks(exam: Exam, wording: Wording) -> list[Ask]:
    """One for each probe and view."""
    return [
        Ask(p.case, "real", view, wording.yes_no_about(p.label))
        for view in exam.views
        for p in exam.probes
        if exam.fits(p.case, view)
    ]


def scale_name(exam: Exam, scale: float) -> str:
    """The condition whose features have this length."""
    return "real" if scale == exam.norm else f"x{scale:g}"


def features(exam: Exam, case: int, condition: str) -> np.ndarray | None:
    """What the audio branch is given of a case's sound, [S, out]."""
    own = exam.cases[case]
    if condition == "none":
        return None
    if condition == "muted":
        return exam.silence
    if condition == "noise":
        return own.noise
    if condition == "swapped":
        partner = exam.partners[case]
        assert partner is not None
        return exam.cases[partner].sound
    if condition == "real":
        return own.sound
    return own.sound * np.float32(float(condition.removeprefix("x")) / exam.norm)


def given(engine: Engine, exam: Exam, ask: Ask) -> Encoded | None:
    """The soft prompts of what a question is about; None where nothing is."""
    case, given = exam.cases[ask.case], features(exam, ask.case, ask.condition)
    sight = case.sight if ask.view == "beside" else None
    if sight is None and given is None:
        return None
    sound = None if given is None else long.hear(engine, _UNIFORM, [given])
    return Encoded(sight, sound, case.message, case.still)


class Asker:
    """Asks an exam's questions in batches; with a ``path``, what was said before is not asked anew.

    Args:
      settings: of the run; a file that was written with others is refused with a ValueError.
      show: told how many are answered, out of how many.
    """

    def __init__(
        self,
        engine: Engine,
        exam: Exam,
        batch: int = 16,
        max_new_tokens: int = 32,
        path: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        show: Progress | None = None,
    ):
        self.engine, self.exam, self.batch, self.show = engine, exam, batch, show
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self.path = path
        self.said: dict[Key, str] = {}
        self.preferred: dict[Key, float] = {}
        if path is not None:
            self._open(path, dict(settings or {}))

    def _open(self, path: Path, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        *whole, cut = path.read_bytes().split(b"\n") if path.exists() else [b""]
        rows = [json.loads(line) for line in whole]
        if not rows:
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            return
        different = [k for k in settings if rows[0].get(k) != settings[k]]
        if different:
            raise ValueError(
                f"{path}: holds answers of another run ({', '.join(different)} differ); name "
                "another folder with --out"
            )
        if cut:
            write_whole(path, "".join(line.decode() + "\n" for line in whole))
        for row in rows[1:]:
            key = (row["condition"], row["view"], row["clip"], row["question"])
            if "answer" in row:
                self.said[key] = row["answer"]
            else:
                self.preferred[key] = row["yes_less_no"]

    def run(self, open_asks: Sequence[Ask], yes_no: Sequence[Ask]) -> None:
        """Answers all, and weighs yes against no for ``yes_no``."""
        wanted = {a.key(self.exam): a for a in [*open_asks, *yes_no]}
        weighed = {a.key(self.exam): a for a in yes_no}
        total = len(wanted) + len(weighed)
        new = [k for k in wanted if k not in self.said]
        for keys in _chunks(new, self.batch):
            requests = [self._request(wanted[k]) for k in keys]
            said = self.engine.answer(requests, self.sampling)
            self.said |= zip(keys, said, strict=True)
            self._keep({k: {"answer": self.said[k]} for k in keys}, total)
        new = [k for k in weighed if k not in self.preferred]
        for keys in _chunks(new, self.batch):
            self.preferred |= self._weigh(keys, [self._request(weighed[k]) for k in keys])
            self._keep({k: {"yes_less_no": self.preferred[k]} for k in keys}, total)

    def _request(self, ask: Ask) -> Request:
        return Request(ask.question, given(self.engine, self.exam, ask))

    def _weigh(self, keys: Sequence[Key], requests: Sequence[Request]) -> dict[Key, float]:
        """Nats by which "Yes." is likelier than "No."."""
        yes, no = (log_likelihoods(self.engine, requests, [w] * len(keys)) for w in (YES, NO))
        return {k: y.nats - n.nats for k, y, n in zip(keys, yes, no, strict=True)}

    def _keep(self, new: Mapping[Key, Mapping[str, Any]], total: int) -> None:
        if self.path is not None:
            names = ("condition", "view", "clip", "question")
            rows = [dict(zip(names, key, strict=True)) | dict(said) for key, said in new.items()]
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if self.show:
            self.show(min(len(self.said) + len(self.preferred), total), total)

    def answer(self, ask: Ask) -> str:
        return self.said[ask.key(self.exam)]

    def preference(self, ask: Ask) -> float:
        return self.preferred[ask.key(self.exam)]


def _kind(key: Key) -> tuple[str, bool]:
    """What those in a batch have in common: which media there are."""
    return key[1], key[0] == "none"


def _chunks(keys: Sequence[Key], size: int) -> Iterator[Sequence[Key]]:
    """At most ``size`` keys of one kind at a time."""
    groups: dict[tuple[str, bool], list[Key]] = collections.defaultdict(list)
    for key in keys:
        groups[_kind(key)].append(key)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
