"""What the unembedding says of words: which themes a word is kin to, how alike two words are.

The unembedding knows that *Mazda* and *hatchback* stand by *vehicle*, in any language. Its rows are
no use as they are: a few directions that all rows share (frequency, script) outweigh meaning. So
the rows are centred, scaled to unit length, **whitened** by their own covariance (C, shrunk to
0.9·C + 0.1·mean variance), and scaled again; a cosine between two such rows is what remains when
everything common is gone. On 20 % of the lexicon's words held out, the nearest two thousand tokens
to a concept's mean contain 81 % of them; on rows that are only centred, 60 %.

A theme's **prototype** is the mean of its listed words (a concept may have more than one, `facets`:
digits are far from number words). A word's membership in theme i is

    m_i = e^{b_i} / (1 + Σ_j e^{b_j}),   b_i = 10·(cos_i - c_i) / s_i + 4·[listed]

with s_i = √(own_i/4) and own_i the median cosine of the theme's words to the mean of the others: a
broad theme has a smaller one. The level c_i is 0.65·s_i, and 3.5/√H at least, which chance hardly
reaches. A word that a concept lists belongs to it fully, a homograph as far as its row says and by
0.3 at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from conceptvec.concepts import BUILT_IN, ConceptSet, data
from conceptvec.scoring.listed import is_built_in
from conceptvec.scoring.table import (
    MEMBERSHIPS,
    NOT_A_WORD,
    Listed,
    Reader,
    TokenTable,
    find_pieces,
    normalised,
)
from conceptvec.scoring.words import normalise, script

SHRINK = 0.1  # part of the covariance that is replaced by its mean variance
SAMPLE = 2**16  # rows that the covariance is taken from
CHUNK = 2**15  # rows in float32 at a time
SKETCH = 128  # dimensions of the random projection in which words are compared with words
MEMBERS = 3  # listed words that a prototype needs
LANGUAGE_MEMBERS = 20  # words that a language needs to be told from the others
# Of the membership: its slope, its level, and the head start of a listed word.
STEEP, LEVEL, KNOWN = 10.0, 0.65, 4.0
CHANCE = 3.5  # standard deviations of a random row's cosine that a level lies above 0 at least
OWN = 0.25  # the scale of a theme's own cosines; no theme counts as broader than a fifth of it
HOMOGRAPH_FLOOR = 0.3
UNTRAINED = 0.5  # cosine to the reserved rows from which a token was never trained


@dataclass(frozen=True)
class Prototype:
    """The mean of some listed words: the theme it stands for, and its words' token ids."""

    theme: int
    members: np.ndarray


class Kinship:
    """A vocabulary as its lexicons and its unembedding see it.

    Args:
        tokens: text of every token, length V.
        masked: bool (V,).
        unembedding: (V, H).
        concepts: the run's concepts.

    Attributes:
        table: one row per token.
        sketch: float32 (V, s), unit rows; a dot product estimates the whitened cosine of two words.
        language: int (V,), the language or script that a word is written in.
        english: the number of English among them, -1 where it is not told from other languages.
    """

    def __init__(
        self,
        tokens: list[str],
        masked: np.ndarray,
        unembedding: torch.Tensor,
        concepts: ConceptSet,
    ) -> None:
        reader = Reader(concepts)
        rows = Rows(unembedding, tokens, masked)
        words = normalised(tokens, masked | rows.untrained)
        pieces = find_pieces(tokens, words)
        listed = reader.read(tokens, words, pieces.sure)
        usable = listed.lemma != NOT_A_WORD
        prototypes = [
            prototype
            for prototype in _prototypes(reader, listed, concepts, usable)
            if len(prototype.members) >= MEMBERS
        ]
        tongues, members = _tongues(tokens, listed, usable)
        cosines, languages, self.sketch = rows.compare(
            [prototype.members for prototype in prototypes], members
        )
        theme, weight = _memberships(reader, listed, prototypes, cosines, unembedding.shape[1])
        weight[~usable] = 0
        self.table: TokenTable = reader.table(listed, pieces, theme, weight)
        self.language, self.english = _languages(listed.words, languages, tongues)


class Rows:
    """The whitened rows of an unembedding, chunk by chunk."""

    def __init__(self, unembedding: torch.Tensor, tokens: list[str], masked: np.ndarray) -> None:
        self.unembedding, self.device = unembedding, unembedding.device
        shown = torch.as_tensor(~masked, device=self.device)
        self.mean = self._mean(shown)
        self.untrained = self._untrained(tokens, masked)
        ids = np.flatnonzero(~masked & ~self.untrained)
        self.whitening = self._whitening(ids[:: max(1, len(ids) // SAMPLE)])

    def _mean(self, shown: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(self.unembedding.shape[1], device=self.device)
        for rows, use in zip(self.unembedding.split(CHUNK), shown.split(CHUNK), strict=True):
            total += use.float() @ rows.float()
        return total / shown.sum()

    def _unit(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(rows.float() - self.mean, dim=1)

    def _untrained(self, tokens: list[str], masked: np.ndarray) -> np.ndarray:
        """Tokens whose rows lie by those of ``<unusedN>``, bool (V,): nothing ever moved them."""
        untrained = np.zeros(len(tokens), bool)
        reserved = [i for i, token in enumerate(tokens) if token.startswith("<unused")]
        if not reserved:
            return untrained
        direction = self._unit(self.unembedding[torch.as_tensor(reserved, device=self.device)])
        direction = torch.nn.functional.normalize(direction.mean(0), dim=0)
        near = [(self._unit(rows) @ direction).cpu() for rows in self.unembedding.split(CHUNK)]
        return (torch.cat(near).numpy() >= UNTRAINED) & ~masked

    def _whitening(self, ids: np.ndarray) -> torch.Tensor:
        """What unit rows are multiplied by, (H, H), from the rows `ids`; float64, so on the CPU."""
        size = self.unembedding.shape[1]
        covariance = torch.zeros(size, size, dtype=torch.float64)
        for part in np.array_split(ids, max(1, len(ids) // CHUNK)):
            unit = self._unit(self.unembedding[torch.as_tensor(part, device=self.device)])
            covariance += (unit.T @ unit).cpu().double()
        covariance /= max(len(ids), 1)
        spread = torch.diagonal(covariance).mean().clamp_min(1e-12)
        shrunk = (1 - SHRINK) * covariance + SHRINK * spread * torch.eye(size, dtype=torch.float64)
        root = torch.linalg.cholesky(torch.linalg.inv(shrunk))
        return root.float().to(self.device)

    def whitened(self, rows: torch.Tensor) -> torch.Tensor:
        """Whitened unit rows (n, H) of rows of the unembedding."""
        return torch.nn.functional.normalize(self._unit(rows) @ self.whitening, dim=1)

    def means(self, groups: list[np.ndarray]) -> torch.Tensor:
        """The mean whitened rows of groups of tokens, (groups, H): the longer, the more alike."""
        total = torch.zeros(len(groups), self.unembedding.shape[1], device=self.device)
        if not groups:
            return total
        ids = torch.as_tensor(np.concatenate(groups), device=self.device)
        sizes = torch.tensor([len(group) for group in groups], device=self.device)
        group = torch.repeat_interleave(torch.arange(len(groups), device=self.device), sizes)
        for part, where in zip(ids.split(CHUNK), group.split(CHUNK), strict=True):
            total.index_add_(0, where, self.whitened(self.unembedding[part]))
        return total / sizes[:, None]

    def compare(
        self, groups: list[np.ndarray], languages: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every token's cosines to groups of tokens (V, groups), to languages, its sketch (V, s).

        The cosine of a group's own member is the one to the mean of the others.
        """
        means = self.means([*groups, *languages])
        basis = torch.nn.functional.normalize(means, dim=1)
        size = self.unembedding.shape[1]
        random = torch.randn(size, SKETCH, generator=torch.Generator().manual_seed(0))
        projection = (random if size > SKETCH else torch.eye(size)).to(self.device)
        near, small = [], []
        for rows in self.unembedding.split(CHUNK):
            white = self.whitened(rows)
            near.append((white @ basis.T).cpu())
            small.append(torch.nn.functional.normalize(white @ projection, dim=1).cpu())
        cosines, lengths = torch.cat(near).numpy(), means.norm(dim=1).tolist()
        for column, ids in enumerate(groups):
            sum_length = lengths[column] * len(ids)
            cosines[ids, column] = _without_itself(cosines[ids, column], sum_length)
        return cosines[:, : len(groups)], cosines[:, len(groups) :], torch.cat(small).numpy()


def _without_itself(cosine: np.ndarray, length: float) -> np.ndarray:
    """Members' cosines to a sum of unit vectors of that length, each taken out of the sum."""
    rest = length**2 - 2 * length * cosine + 1
    return (length * cosine - 1) / np.sqrt(np.maximum(rest, 1e-9))


def _prototypes(
    reader: Reader, listed: Listed, concepts: ConceptSet, usable: np.ndarray
) -> Iterator[Prototype]:
    """The prototypes of all themes, the concepts' first."""
    numeral = np.array([word.isnumeric() for word in listed.words], bool)
    for theme, name in enumerate(reader.names):
        words = usable & (listed.concept == theme)
        parts = [words & (listed.hit >= 1) & ~numeral, words & numeral]
        for facet in map(set, _facets(name, concepts)):
            parts.append(words & np.array([word in facet for word in listed.words], bool))
        yield from (Prototype(theme, np.flatnonzero(part)) for part in parts)
    for beside in range(len(reader.borders.names)):
        words = usable & (listed.border == beside)
        yield Prototype(len(reader.names) + beside, np.flatnonzero(words))


def _facets(name: str, concepts: ConceptSet) -> list[list[str]]:
    """Words of a built-in concept that lie apart from the rest and have their own prototype."""
    concept = next(one for one in concepts.concepts if one.name == name)
    if name not in BUILT_IN or not is_built_in(concept):
        return []
    return data("lexicon", f"{name}.json").get("facets", [])


def _memberships(
    reader: Reader, listed: Listed, prototypes: list[Prototype], cosines: np.ndarray, hidden: int
) -> tuple[np.ndarray, np.ndarray]:
    """The strongest themes of every token and how far it belongs to them, (V, MEMBERSHIPS) each."""
    size, themes = len(listed.words), len(reader.themes)
    odds = np.zeros((size, themes), np.float32)
    for column, prototype in enumerate(prototypes):
        theme, usual = prototype.theme, np.median(cosines[prototype.members, column])
        scale = np.sqrt(OWN * max(float(usual), OWN / 5))
        level = max(LEVEL * scale, CHANCE / np.sqrt(hidden))
        known = _lists(listed, theme, len(reader.names))
        exponent = STEEP * (cosines[:, column] - level) / scale + KNOWN * known
        odds[:, theme] += np.exp(np.minimum(exponent, 60))
    belongs = odds / (1 + odds.sum(1, keepdims=True))
    return _strongest(_with_listed(belongs, listed))


def _lists(listed: Listed, theme: int, concepts: int) -> np.ndarray:
    """Whether a theme lists the word, bool (V,)."""
    return listed.concept == theme if theme < concepts else listed.border == theme - concepts


def _with_listed(belongs: np.ndarray, listed: Listed) -> np.ndarray:
    """Memberships (V, themes) with the concepts' words in full, homographs by the floor or more."""
    rows = np.flatnonzero(listed.concept >= 0)
    columns = listed.concept[rows]
    plain = listed.hit[rows] >= 1
    least = np.where(plain, 1.0, HOMOGRAPH_FLOOR)
    now = belongs[rows, columns]
    # Lifted words take from their other themes what they give to the concept.
    rest = np.minimum((1 - least) / np.maximum(1 - now, 1e-6), 1)
    belongs[rows] *= np.where(now < least, rest, 1)[:, None]
    belongs[rows, columns] = np.maximum(now, least)
    return belongs


def _strongest(belongs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The `MEMBERSHIPS` strongest themes of every token and their weights."""
    kept = min(MEMBERSHIPS, belongs.shape[1])
    theme = np.argpartition(-belongs, kept - 1, axis=1)[:, :kept]
    return theme, np.take_along_axis(belongs, theme, axis=1)


def _tongues(
    tokens: list[str], listed: Listed, usable: np.ndarray
) -> tuple[list[str], list[np.ndarray]]:
    """Languages in Latin letters that the lexicon has words of, and the tokens of one alone."""
    of_word: dict[str, set[str]] = {}
    for name in BUILT_IN:
        for language, words in data("lexicon", f"{name}.json")["words"].items():
            for word in words:
                if script(word) == "LATIN" or not word.isascii():
                    of_word.setdefault(normalise(word), set()).add(language)
    members: dict[str, list[int]] = {}
    for i in np.flatnonzero(usable):
        known = of_word.get(listed.words[i], set())
        if len(known) == 1 and script(listed.words[i]) == "LATIN" and tokens[i][:1] == " ":
            members.setdefault(next(iter(known)), []).append(int(i))
    kept = sorted(language for language, ids in members.items() if len(ids) >= LANGUAGE_MEMBERS)
    return kept, [np.array(members[language]) for language in kept]


def _languages(words: list[str], cosines: np.ndarray, tongues: list[str]) -> tuple[np.ndarray, int]:
    """A number per language, int (V,), and English's: the nearest, or the script if not Latin."""
    codes: dict[str, int] = {}
    numbers = np.array([codes.setdefault(script(word), len(codes)) for word in words], np.int64)
    latin = numbers == codes.get("LATIN", -1)
    if len(tongues) < 2 or not latin.any():
        return numbers, -1
    spread = cosines[latin].std(0) + 1e-9
    nearest = ((cosines[latin] - cosines[latin].mean(0)) / spread).argmax(1)
    numbers[latin] = len(codes) + nearest
    return numbers, len(codes) + tongues.index("en") if "en" in tongues else -1
