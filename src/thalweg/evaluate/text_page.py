"""The sections of a report on a model of texts."""

import html
from collections.abc import Mapping
from typing import Any

from thalweg.evaluate.report_parts import image, nats, table

LAWS = {"": "this model", "bigram_": "bigram law", "ngram_": "n-gram law"}
SHARES = {
    "training": "are training texts",
    "held_out": "are held-out texts, which no training saw",
    "repeated": "repeat an earlier one",
    "empty": "are empty",
}


def text_sections(figures: Mapping[str, Any], pictures: Mapping[str, Any]) -> list[str]:
    """Tiles, samples, detection and likelihood as HTML."""
    return [_tiles(figures), _samples(figures), _detection(figures, pictures), _likelihood(figures)]


def _tiles(figures: Mapping[str, Any]) -> str:
    found = [
        (f"Told from {row['out']}", f"{row['auroc']:.3f}", f"AUROC; bigram law: {row['bigram_auroc']:.3f}; chance: 0.5")
        for row in figures["detection"]
    ]
    if likelihood := figures["likelihood"]:
        note = f"nats; bigram law: {nats(likelihood['nats_bigram'])}"
        found.append(("Log p of an unseen text", nats(likelihood["nats"]), note))
    tiles = "".join(f'<div class="tile">{html.escape(n)}<b>{v}</b><small>{s}</small></div>' for n, v, s in found)
    return f'<div class="tiles">{tiles}</div>'


def _samples(figures: Mapping[str, Any]) -> str:
    rows = [
        [html.escape(row["text"]) or "(empty)", f"{row['energy']:.2f}", html.escape(row["nearest"]), row["edits"]]
        for row in figures["sample_table"]
    ]
    rows = [[*map(str, cells), row["note"]] for cells, row in zip(rows, figures["sample_table"], strict=True)]
    columns = ("samples", "bigram", "real")
    shares = [[text, *(f"{figures['samples'][column][key]:.1%}" for column in columns)] for key, text in SHARES.items()]
    lengths = ["have so many letters on average"]
    lengths += [f"{figures['samples'][column]['mean_length']:.2f}" for column in columns]
    return (
        "<h2>Samples</h2><p>The first samples, not chosen, each with the training text that takes the fewest edits: "
        "letters left out, put in or replaced.</p>"
        + table(["sample", "energy (nats)", "nearest training text", "edits", ""], rows, own=(0,))
        + f"<p>How many of {figures['about']['num_samples']:,} samples</p>"
        + table(["", "this model", "bigram law", "unseen texts"], [*shares, lengths])
    )


def _detection(figures: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    text = (
        "<h2>Does it notice what is not data?</h2><p>The model gives every text an <b>energy</b>: low means "
        "&ldquo;looks like the data&rdquo;. <b>AUROC</b>: how often a text of the set gets a higher energy than an "
        "unseen one (1 is perfect, 0.5 is chance). <b>Its own text</b>: how often it gets a higher one than the text "
        "that it was made of. No altered text is one of the data.</p>"
    )
    if "energies" in pictures:
        text += image(pictures["energies"], "histograms of energies", "One strip a set; each to its own height.")
    laws = {**LAWS, "ngram_": f"{figures['about']['ngram_order']}-gram law"}
    rows = []
    for row in figures["detection"]:
        paired = [f"{row[f'{law}paired']:.3f}" if f"{law}paired" in row else "" for law in laws]
        rows.append([html.escape(row["out"]), *(f"{row[f'{law}auroc']:.3f}" for law in laws), *paired])
    head = ["told apart from", *(f"AUROC, {name}" for name in laws.values())]
    return text + table([*head, *(f"its own text, {name}" for name in laws.values())], rows, own=(1, 4))


def _likelihood(figures: Mapping[str, Any]) -> str:
    found, rivals = figures["likelihood"], figures["rivals"]
    text = "<h2>How much probability does it give to unseen texts?</h2>"
    rows = [[nats(rivals["nats_bigram"]), nats(rivals["nats_ngram"])]]
    if not found:
        text += "<p>This model's energy has an unknown additive constant, so it has no log-likelihood.</p>"
        own = "unknown"
    else:
        text += f"<p>Mean over {found['num']:,} unseen texts. A <b>nat</b> is a factor of e in probability.</p>"
        own = f"{nats(found['nats'])} ± {nats(found['nats_error'])}"
    rows = [["log p of an unseen text (nats; higher is better)", own, *rows[0]]]
    if found and "nats_low" in found:
        ends = [found["nats_low"], found["nats_high"]]
        interval = " to ".join("unbounded" if end is None else nats(end) for end in ends)
        rows.append(["the same, by the interval of the estimated constant (nats)", interval, "", ""])
    if found:
        rows.append(["log p of the model's own samples (nats)", nats(found["nats_samples"]), "", ""])
    order = figures["about"]["ngram_order"]
    return text + table(["figure", "this model", "bigram law", f"{order}-gram law"], rows)
