"""What a judge of samples gives: an opinion about one set, a ranking of several."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from pydantic import BaseModel, Field
from torch import Tensor

from thalweg.energy.base import Capability
from thalweg.monitor.vision.bradley_terry import Strengths
from thalweg.monitor.vision.controls import ControlResult

OpinionKind = Literal["good", "alike", "noise", "copies", "other"]
MEANING: dict[str, str] = {
    "good": "good: readable, varied, like the data",
    "alike": "too alike: near-copies of each other, or kinds of data are missing",
    "noise": "noise",
    "copies": "copies of the data they were compared with",
    "other": "flawed in another way, or not judged",
}


class Facts(BaseModel):
    """What is said of how a judge came to its answer, in every opinion and ranking."""

    judge: Literal["vision", "statistical"]
    reliable: bool
    sentence: str
    problem: str = ""  # why there is no answer, or no whole one
    reasons: list[str] = []
    controls: list[ControlResult] = []
    chance_to_pass: float | None = None  # of a judge that answers at random
    flip_rate: float | None = None  # share of sheets whose preference follows the place and not the picture
    model: str = ""
    host: str = ""
    prompt_version: str = ""
    temperature: float | None = None  # None: the server's own
    seed: int = 0
    questions: int = 0  # that have an answer
    images_sent: int = 0  # by this process, for this judge
    cost: float = 0.0  # US dollars, all that the cache folder holds


class Opinion(Facts):
    """One set of samples beside real data.

    reliable: Whether the controls were passed and the answers are whole; else nobody should act on it.
    verdict: In one word; `MEANING` says what it means.
    preferred: Share of answers that prefer the samples to real data, a tie as a half; 0.5 for samples as good as data.
    attributes: Share of answers that see a flaw in the samples and not in the real data, by flaw (vision judge).
    figures, p_value: Of `Diversity.check` (statistical judge).
    """

    verdict: OpinionKind = "other"
    step: int | None = None
    quality: str = ""
    preferred: float | None = None
    attributes: dict[str, float] = {}
    figures: dict[str, float] = {}
    p_value: float | None = None


class Strength(BaseModel):
    """The strength of a set in nats, with the ends of its interval; the mean over sets is 0."""

    name: str
    strength: float
    low: float
    high: float


class Ranking(Facts):
    """Several sets, the strongest first (Bradley-Terry); real data take part under the name "real"."""

    strengths: list[Strength] = Field(default_factory=list)
    level: float = 0.95  # of the intervals

    def order(self) -> list[str]:
        """The names, the strongest first."""
        return [each.name for each in self.strengths]


def strength_rows(names: Sequence[str], found: Strengths) -> list[Strength]:
    """The strengths by name, the strongest first."""
    rows = [Strength(name=n, strength=s, low=a, high=b) for n, s, a, b in zip(names, *found, strict=True)]
    return sorted(rows, key=lambda row: -row.strength)


@runtime_checkable
class SampleJudge(Protocol, metaclass=Capability):
    """Who judges samples: `VisionJudge`, `StatisticalJudge`, or one of the user's."""

    def compare(self, samples: Tensor, real: Tensor, *, step: int | None = None) -> Opinion:
        """An opinion about samples beside real data."""
        ...

    def rank(self, sets: dict[str, Tensor], real: Tensor) -> Ranking:
        """Several sets, such as samples of a run's checkpoints, by strength."""
        ...
