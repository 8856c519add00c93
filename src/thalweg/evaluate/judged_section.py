"""The section of a report that says what a judge made of the samples, and whether the judge may be listened to."""

import html
from collections.abc import Mapping
from typing import Any

from thalweg.evaluate.report_parts import image, table


def judged_section(opinion: Mapping[str, Any] | None, pictures: Mapping[str, Any]) -> str:
    """HTML from an opinion, as `opinion.json` has it; empty without one.

    The contact sheet is the picture "judged". All text is escaped: reasons are written by a model.
    """
    if not opinion:
        return ""
    text = f"<h2>Judged</h2><p><b>{html.escape(opinion['sentence'])}</b></p>"
    if not opinion["reliable"]:
        text += "<p>Nothing should be concluded from this judge's answers, and no run acts on them.</p>"
    if "judged" in pictures:
        caption = "Panel A: made by the model, not chosen. Panel B: real, unseen in training."
        text += image(pictures["judged"], "samples beside real data", caption)
    return text + _facts(opinion) + _controls(opinion) + _reasons(opinion)


def _facts(opinion: Mapping[str, Any]) -> str:
    """How the judge came to its answer."""
    vision = opinion["judge"] == "vision"
    rows = [
        ("verdict", opinion["verdict"] if opinion["reliable"] else "none"),
        ("judge", f"{opinion['model']} at {opinion['host']}" if vision else "statistical, no vision model"),
        ("reliable", f"{'yes' if opinion['reliable'] else 'no'}; {_passed(opinion)}"),
    ]
    if opinion["chance_to_pass"] is not None:
        rows.append(("a judge at random would pass with probability", f"{opinion['chance_to_pass']:.1g}"))
    if opinion["flip_rate"] is not None:
        share = f"{opinion['flip_rate']:.0%} of sheets"
        rows.append(("preference that follows the place, not the pictures", share))
    if opinion["preferred"] is not None:
        rows.append(("preferred to real data (a tie counts half)", f"{opinion['preferred']:.0%}"))
    rows += [(f"seen in the samples alone: {name}", f"{share:.0%}") for name, share in opinion["attributes"].items()]
    if opinion["p_value"] is not None:
        rows.append(("p-value", f"{opinion['p_value']:.2g}"))
    rows += [(name, f"{value:.3f}") for name, value in opinion["figures"].items()]
    if vision:
        warmth = "the server's own" if opinion["temperature"] is None else str(opinion["temperature"])
        rows += [
            ("prompt, temperature", f"version {opinion['prompt_version']}, {warmth}"),
            ("answers, images sent for them", f"{opinion['questions']}, {opinion['images_sent']}"),
            ("cost, by the prices in the settings", f"${opinion['cost']:.4f}"),
        ]
    rows.append(("training step, seed", f"{opinion['step']}, {opinion['seed']}"))
    return table(["", "this judge"], [[html.escape(cell) for cell in row] for row in rows])


def _passed(opinion: Mapping[str, Any]) -> str:
    found = opinion["controls"]
    return f"{sum(control['passed'] for control in found)} of {len(found)} controls passed"


def _controls(opinion: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{html.escape(control['kind'])}<small>{html.escape(control['meaning'])}</small>",
            "passed" if control["passed"] else "<b>failed</b>",
            f'<div style="text-align: left"><small>{html.escape(" / ".join(control["reasons"]))}</small></div>',
        ]
        for control in opinion["controls"]
    ]
    if not rows:
        return ""
    text = "<p><b>Controls</b> are sheets whose answer is known. A judge that fails one is not listened to.</p>"
    return text + table(["control", "", "what it said"], rows)


def _reasons(opinion: Mapping[str, Any]) -> str:
    if opinion["judge"] != "vision" or not opinion["reasons"]:  # the statistical judge's is its sentence
        return ""
    items = "".join(f"<li>{html.escape(reason)}</li>" for reason in opinion["reasons"])
    return f"<p>Its reasons, in its own words:</p><ul>{items}</ul>"
