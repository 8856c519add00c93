"""From answers to a verdict in one word and a sentence."""

from collections.abc import Callable, Sequence

from thalweg.monitor.vision.controls import ControlResult, preferred
from thalweg.monitor.vision.opinion import MEANING, Opinion, OpinionKind, Strength
from thalweg.monitor.vision.questions import Answer, PanelAnswer

Pair = tuple[Answer, Answer]  # in the second the subject was panel B
WORDS = ("poor", "fair", "good", "very good")
FLAWS: dict[str, Callable[[PanelAnswer], bool]] = {  # what may be said of a panel
    "noise": lambda panel: panel.noise == "yes",
    "near-copies": lambda panel: panel.near_copies == "yes",
    "class missing": lambda panel: panel.class_missing == "yes",
    "not varied": lambda panel: panel.varied == "no",
    "not readable": lambda panel: panel.readable == "no",
    "artefacts": lambda panel: panel.artefacts == "yes",
}
ALIKE = ("near-copies", "class missing", "not varied")


def opinion_of(model: str, main: Sequence[Pair], nearest: Sequence[Pair], failed: str, problem: str) -> Opinion:
    """The opinion that answers about samples beside real data, and beside the nearest real data, come to.

    A flaw counts where more than half of the answers see it in the samples and not in the real data.
    """
    if failed or problem or not main or not nearest:
        sentence = not_listened_to(model, failed) if failed else no_answer(problem or "there are no answers")
        return Opinion(judge="vision", reliable=False, sentence=sentence, problem=problem)
    answers = [(answer, swapped) for pair in main for swapped, answer in enumerate(pair)]
    shares = {name: _share(flaw, answers) for name, flaw in FLAWS.items()}
    shares["copies of the data"] = _mean([answer.same_in_both == "yes" for pair in nearest for answer in pair])
    weaker = _mean([_rank(answer.panel(k)) < min(2, _rank(answer.panel(1 - k))) for answer, k in answers])
    verdict = _verdict(shares, weaker)
    score = _mean([{"subject": 1.0, "tie": 0.5, "beside": 0.0}[preferred(a, bool(k))] for a, k in answers])
    quality = WORDS[sorted(_rank(answer.panel(k)) for answer, k in answers)[(len(answers) - 1) // 2]]
    seen = [f"{name} {share:.0%}" for name, share in shares.items() if share > 0]
    sentence = (
        f"Vision judge {model}: the samples are {MEANING[verdict]} (quality {quality}; preferred to real data in "
        f"{score:.0%} of {len(answers)} answers{'; seen: ' if seen else ''}{', '.join(seen)})."
    )
    reasons = [f"(samples are panel {'AB'[k]}) {answer.reasons}" for answer, k in answers]
    return Opinion(
        judge="vision",
        reliable=True,
        sentence=sentence,
        verdict=verdict,
        reasons=reasons,
        quality=quality,
        preferred=score,
        attributes=shares,
    )


def _verdict(shares: dict[str, float], weaker: float) -> OpinionKind:
    if shares["noise"] > 0.5:
        return "noise"
    if shares["copies of the data"] > 0.5:
        return "copies"
    if any(shares[name] > 0.5 for name in ALIKE):
        return "alike"
    flawed = any(shares[name] > 0.5 for name in ("not readable", "artefacts"))
    return "other" if flawed or weaker > 0.5 else "good"


def _share(flaw: Callable[[PanelAnswer], bool], answers: Sequence[tuple[Answer, int]]) -> float:
    """Share of answers that see a flaw in the samples and not in the real data."""
    return _mean([flaw(answer.panel(k)) and not flaw(answer.panel(1 - k)) for answer, k in answers])


def _rank(panel: PanelAnswer) -> int:
    return WORDS.index(panel.quality)


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values)


def failed_controls(results: Sequence[ControlResult]) -> str:
    """The kinds of control that a judge failed, in words; empty where it passed all."""
    return ", ".join(result.kind for result in results if not result.passed)


def not_listened_to(model: str, failed: str) -> str:
    """The sentence for a judge that fails controls."""
    return f"Vision judge {model} is not listened to: it failed these controls: {failed}."


def no_answer(problem: str) -> str:
    """The sentence for a run of questions that did not come to its end."""
    return f"The vision judge gave no opinion: {problem}."


def ranking_sentence(model: str, strengths: Sequence[Strength], failed: str, problem: str) -> str:
    """The sentence of a ranking."""
    if failed:
        return not_listened_to(model, failed)
    if not strengths:
        return no_answer(problem or "there are no answers")
    order = " > ".join(f"{row.name} ({row.strength:+.2f})" for row in strengths)
    rest = f" It is not whole: {problem}." if problem else ""
    return f"Vision judge {model}, strengths in nats: {order}.{rest}"
