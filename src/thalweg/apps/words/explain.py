"""Why a text is unlikely, letter by letter, and what was meant: the text of lowest energy within an edit or two.

The surprise of a letter is -log p(x_i | all other letters), by the energies of all letters in its place; the energy's
constant cancels. A misspelling is repaired by the energies of all texts that are one edit away.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.apps.words.edits import Codes, Edit, edited, neighbours
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.inputs import checked_rows
from thalweg.core import check
from thalweg.core.errors import UserError, kind_of
from thalweg.data.alphabet import END, UNSEEN, Alphabet, normal
from thalweg.data.texts import as_texts, is_texts


class Explanation(NamedTuple):
    """What an energy says of one text, in the normal form NFC.

    A letter that no training text has stays as it was given; U+FFFD stands for it where codes were given.
    """

    text: str
    energy: float  # nats
    surprise: tuple[float, ...]  # of each letter, nats: -log p(letter | the other letters)
    expected: tuple[str, ...]  # the likeliest letter in each place; "" where the text had better end
    end_surprise: float | None  # of ending where it does, nats; None for a text of full length
    repair: str  # the text that was meant: another, within so many edits
    repair_energy: float  # nats
    edits: tuple[str, ...]  # what makes the repair of the text: letters "replaced", "put in", "taken out", "exchanged"

    @property
    def worst(self) -> int | None:
        """The place of the most surprising letter; None for an empty text."""
        return max(range(len(self.surprise)), key=self.surprise.__getitem__) if self.surprise else None


def explain(bundle: Bundle, x: Any, *, edits: int = 1, channel: bool = False, beam: int = 20) -> list[Explanation]:
    """Each text's surprise by letter, the letters expected, and its lowest-energy repair.

    A text of n letters in an alphabet of K states costs about (3 n + 1) K energies; with two edits, `beam` times more.

    Args:
        bundle: A model of texts.
        x: A list of str, or codes (B, L).
        edits: 1; or 2, from the `beam` best texts of one edit.
        channel: Whether repairs are ranked by energy plus the cost of the typing error (`edits.Edit`), as a posterior
            would: the energy alone prefers short texts, which are likelier.
        beam: Texts kept after the first of two edits.

    Raises:
        UserError: The model is not one of texts, or an argument is wrong.
    """
    if bundle.alphabet is None:
        text = f"must be a model of texts to explain letters; it is one of {bundle.kind} data"
        raise UserError(text, argument=str(bundle.path), hint="train one by `thalweg train FILE.txt`")
    check.whole("edits", edits, 1, 2)
    check.count(beam=beam)
    if not isinstance(channel, bool):
        raise UserError(f"must be True or False; it is {kind_of(channel)}", argument="channel", value=channel)
    codes = checked_rows(bundle, x)
    if not len(codes):
        return []
    energies = CachedEnergies(bundle)
    rows = [tuple(int(c) for c in row[row != END]) for row in codes]
    laws = _conditionals(energies, rows)
    repairs = _repairs(energies, rows, edits, channel, beam)
    own = energies(rows)
    names = [normal(text) for text in as_texts(x, "x")] if is_texts(x) else bundle.alphabet.decode(codes)
    found = []
    for row, name, u, law, path in zip(rows, names, own, laws, repairs, strict=True):
        surprise = [-float(law[i, c]) for i, c in enumerate(row)]
        end = -float(law[len(row), END]) if len(row) < bundle.alphabet.length else None
        expected = _expected(bundle.alphabet, law[: len(row)])
        meant = _repaired(bundle.alphabet, name, row, path)
        kinds = tuple(edit.kind for edit in path)
        meant_energy = float(energies([path[-1].codes])[0])
        found.append(Explanation(name, float(u), tuple(surprise), expected, end, meant, meant_energy, kinds))
    return found


def _repaired(alphabet: Alphabet, text: str, codes: Codes, path: Sequence[Edit]) -> str:
    """The text after some edits of its codes; letters that none touches stay as they are."""
    letters = list(text)
    for edit in path:
        signs = alphabet.decode(torch.tensor(edit.codes, dtype=torch.float32)[:, None])
        letters, codes = edited(letters, codes, edit, signs), edit.codes
    return "".join(letters)


class CachedEnergies:
    """CachedEnergies of texts given as codes, each evaluated once."""

    def __init__(self, bundle: Bundle):
        assert bundle.alphabet is not None
        self.bundle, self.alphabet = bundle, bundle.alphabet
        self.known: dict[Codes, float] = {}

    def __call__(self, texts: Sequence[Codes]) -> Float[Tensor, " b"]:
        """(B,) nats, float64."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            with torch.no_grad():
                u = self.bundle.energy(_padded(new, self.alphabet.length)).double().tolist()
            self.known.update(zip(new, u, strict=True))
        return torch.tensor([self.known[text] for text in texts], dtype=torch.float64)


def _padded(texts: Sequence[Codes], length: int) -> Float[Tensor, "b l"]:
    return torch.tensor([[*text, *[END] * (length - len(text))] for text in texts], dtype=torch.float32)


def _conditionals(energies: CachedEnergies, rows: Sequence[Codes]) -> list[Float[Tensor, "n k"]]:
    """log p(state | the other units) of each letter and of the first end, -inf where the rest would be no text."""
    length, num_states = energies.alphabet.length, energies.alphabet.num_states
    tables: list[list[tuple[int, int, Codes]]] = []
    for row in rows:
        units = range(min(len(row) + 1, length))
        tables.append([(i, k, (*row[:i], k, *row[i + 1 :])) for i in units for k in range(1, num_states)])
        if len(row) < length:
            tables[-1].append((len(row), END, row))
        if row:
            tables[-1].append((len(row) - 1, END, row[:-1]))
    energies([text for table in tables for *_, text in table])
    found = []
    for row, table in zip(rows, tables, strict=True):
        law = torch.full((min(len(row) + 1, length), num_states), -torch.inf, dtype=torch.float64)
        units, states = (torch.tensor(part) for part in zip(*((i, k) for i, k, _ in table), strict=True))
        law[units, states] = -energies([text for *_, text in table])
        found.append(torch.log_softmax(law, 1))
    return found


def _expected(alphabet: Alphabet, law: Float[Tensor, "n k"]) -> tuple[str, ...]:
    """The likeliest letter of each unit; one that no training text has is never expected."""
    best = law.clone()
    best[:, UNSEEN] = -torch.inf
    return tuple(alphabet.decode(best.argmax(1, keepdim=True).float())) if len(law) else ()


def _repairs(
    energies: CachedEnergies, rows: Sequence[Codes], edits: int, channel: bool, beam: int
) -> list[tuple[Edit, ...]]:
    """The edits that lead to the best other text of each row."""
    size = (energies.alphabet.num_states, energies.alphabet.length)

    def ranked(paths: list[tuple[Edit, ...]]) -> list[tuple[Edit, ...]]:
        u = energies([path[-1].codes for path in paths]).tolist()
        costs = [a + channel * sum(edit.cost for edit in path) for a, path in zip(u, paths, strict=True)]
        order = sorted(range(len(paths)), key=costs.__getitem__)
        return [paths[i] for i in order]

    firsts = [[(edit,) for edit in neighbours(row, *size).values()] for row in rows]
    energies([path[-1].codes for paths in firsts for path in paths])
    if edits == 1:
        return [ranked(paths)[0] for paths in firsts]
    found = []
    for row, paths in zip(rows, firsts, strict=True):
        best = ranked(paths)[:beam]
        second = [(first, edit) for (first,) in best for edit in neighbours(first.codes, *size).values()]
        paths = [*paths, *(path for path in second if path[-1].codes != row)]
        found.append(ranked(paths)[0])
    return found
