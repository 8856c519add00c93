"""The card of a run for people: what the bundle is, from which data, by which command."""

from typing import Any


def card(config: dict[str, Any]) -> str:
    """A model card in the Hub's form."""
    data, training = config["data"], config.get("training", {})
    claim = "normalised: -E(x) is log p(x) in nats" if config["normalised"] else "its additive constant is unknown"
    return (
        "---\nlibrary_name: thalweg\ntags: [energy-based-model]\n---\n"
        f"# An energy of {config['run']['data']['name']}\n\n"
        f"Data: {data['source']}.\n\n"
        f"The energy is {claim}. {_constant(config.get('constant'))}"
        f"Trained {training.get('steps')} steps in {training.get('seconds')} s with "
        f"thalweg {config['thalweg']}, torch {config['torch']}.\n\n"
        f"Command: `{config['command']}`\n\n"
        "```python\nimport thalweg\nbundle = thalweg.load('PATH')\nbundle.energy(x); bundle.sample(16)\n```\n"
    )


def _constant(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "warning" in found:
        return f"Warning: {found['warning']}. "
    return f"Its constant was corrected by {found['shift']:.3f} nats at the end, to within {found['within']:.3f}. "
