"""The card of a run for people: what the bundle is, from which data, by which command."""

import textwrap
from collections.abc import Sequence
from typing import Any

USE_TEXTS = "bundle.energy(['a text']); bundle.texts(bundle.sample(16))"


def card(config: dict[str, Any], examples: Sequence[str] = ()) -> str:
    """A model card in the Hub's form; `examples`: some of the texts that it was trained on."""
    data, training = config["data"], config.get("training", {})
    known = "normalised: -E(x) is log p(x) in nats"
    claim = known if config["normalised"] else "known up to an additive constant"
    return (
        "---\nlibrary_name: thalweg\ntags: [energy-based-model]\n---\n"
        f"# An energy of {config['run']['data']['name']}\n\n"
        f"Data: {data['source']}.\n\n"
        f"{_texts(data.get('alphabet'), examples)}"
        f"{_sentence(config.get('chosen'))}"
        f"The energy is {claim}. {_anchor(config.get('anchor'))}{_constant(config.get('constant'))}"
        f"Trained {training.get('steps')} steps in {training.get('seconds')} s with "
        f"thalweg {config['thalweg']}, torch {config['torch']}.\n\n"
        f"Command: `{config['command']}`\n\n"
        "```python\nimport thalweg\nbundle = thalweg.load('PATH')\n"
        f"{USE_TEXTS if 'alphabet' in data else 'bundle.energy(x); bundle.sample(16)'}\n```\n"
    )


def _texts(alphabet: dict[str, Any] | None, examples: Sequence[str]) -> str:
    """The letters, the length and some texts of a model of texts; as indented blocks, in which nothing is markup."""
    if alphabet is None:
        return ""
    letters = textwrap.wrap(alphabet["letters"], 80, drop_whitespace=False, replace_whitespace=False)
    blocks = ["\n".join(f"    {line}" for line in lines) for lines in (letters, examples)]
    return (
        f"It takes texts of up to {alphabet['length']} letters. Its {len(alphabet['letters'])} letters, any other of "
        f"which counts as unseen:\n\n{blocks[0]}\n\nSome texts that it was trained on:\n\n{blocks[1]}\n\n"
    )


def _sentence(text: str | None) -> str:
    return "" if text is None else f"{text[0].upper()}{text[1:]}.\n\n"


def _anchor(chosen: dict[str, Any] | None) -> str:
    if chosen is None:
        return ""
    nats = ", ".join(f"{value} at {share}" for share, value in chosen["nats_per_number"].items())
    return (
        f"The covariance of its Gaussian is {chosen['covariance']}: nats a number of {chosen['held_out_rows']} "
        f"training rows left out, by the share of shrinkage, {nats}. "
    )


def _constant(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "warning" in found:
        return f"Warning: {found['warning']}. "
    return f"Its constant was corrected by {found['shift']:.3f} nats at the end, to within {found['within']:.3f}. "
