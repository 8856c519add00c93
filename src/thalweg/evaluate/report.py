"""The report of an evaluation: one self-contained HTML page, for readers without knowledge of such models.

Every figure stands beside those of real data and of chance. Pictures and styles are inlined, so that the page needs no
network. A section appears where the evaluation has figures for it.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from thalweg.core.store import write_bytes, write_json
from thalweg.evaluate.report_parts import cell, image, nats, table
from thalweg.evaluate.suite import require_finite
from thalweg.evaluate.text_page import text_sections

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = Path(__file__).with_name("report_page.html")

# key: (name, what it means in plain words, format)
QUALITY = {
    "confident": ("Readable", "Share of pictures that the digit reader is more than 90 % sure of.", ".1%"),
    "mean_confidence": ("Mean confidence", "How sure the digit reader is on average.", ".3f"),
    "class_entropy": (
        "Variety of digits",
        "Entropy of the digits' counts, in nats. All ten equally often: 2.303; one digit only: 0.",
        ".3f",
    ),
    "frechet": ("Fréchet distance", "Gap between the two clouds of features. 0 is best.", ".2f"),
    "mmd2": (
        "MMD²",
        "Squared kernel distance of the two laws, at the data's median distance. 0 is best, give or take what real "
        "data score.",
        ".4f",
    ),
    "mmd2_multi": (
        "MMD², five bandwidths",
        "The same, averaged over finer scales too: it sees gaps and edges that a Gaussian blurs over.",
        ".4f",
    ),
    "coverage": (
        "Coverage",
        "Share of real examples that have a sample close by. Low: kinds of data are missing.",
        ".3f",
    ),
    "density": ("Density", "How packed the samples lie where real data lie. 1 is typical; low: odd samples.", ".3f"),
    "precision": (
        "Precision",
        "Share of samples that fall where real data lie. Blurry averages do too: read it with recall.",
        ".3f",
    ),
    "recall": ("Recall", "Share of real examples that fall where samples lie.", ".3f"),
    "nearest_ratio": (
        "Distance to the training set",
        "Distance to the closest training example, over what unseen data have. Near 1: as new as unseen data; 0: "
        "copied.",
        ".2f",
    ),
    "share_near": (
        "Suspiciously close",
        "Share closer to a training example than all but 1 % of unseen data are.",
        ".1%",
    ),
}
COLUMNS = {
    "samples": "this model",
    "real": "real, unseen",
    "copies": "copies of training",
    "gaussian": "plain Gaussian",
    "uniform": "uniform in a box",
}


def _tiles(figures: Mapping[str, Any]) -> str:
    """The four figures that matter, large."""
    own, real = (figures.get("quality", {}).get(k, {}) for k in ("samples", "real"))
    found = []
    if "confident" in own:
        found.append(("Readable samples", f"{own['confident']:.0%}", f"real: {real['confident']:.0%}"))
    if "coverage" in own:
        found.append(("Coverage", f"{own['coverage']:.2f}", f"real: {real['coverage']:.2f}"))
    if "mmd2_multi" in own:
        found.append(("MMD², five bandwidths", f"{own['mmd2_multi']:.4f}", f"real: {real['mmd2_multi']:.4f}"))
    if rows := figures.get("detection"):
        worst = min(rows, key=lambda r: r["auroc"])
        note = f"{html.escape(worst['out'])}; chance: 0.5"
        found.append(("Weakest detection", f"{worst['auroc']:.4f}", note))
    if likelihood := figures.get("likelihood"):
        name, key = _rival(likelihood)
        note = f"nats; {name}: {nats(likelihood[f'nats_{key}'])}" if key else "nats"
        found.append(("Log-likelihood, unseen", nats(likelihood["nats"]), note))
    tiles = "".join(f'<div class="tile">{n}<b>{v}</b><small>{s}</small></div>' for n, v, s in found)
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _quality(figures: Mapping[str, Any]) -> str:
    found: Mapping[str, Mapping[str, float]] = figures["quality"]
    columns = [c for c in COLUMNS if c in found]
    rows = [
        [f"{name}<small>{meaning}</small>", *(format(found[c][key], form) for c in columns)]
        for key, (name, meaning, form) in QUALITY.items()
        if key in found["samples"]
    ]
    about = figures["about"]
    return (
        "<h2>How good are the samples?</h2>"
        f"<p>{html.escape(about['digit_network_note'])} Each column has {about['num_samples']:,} examples, compared "
        "with as many unseen real ones. <b>real, unseen</b> is what perfection scores; <b>plain Gaussian</b> is the "
        "simplest model there is.</p>" + table(["figure", *(COLUMNS[c] for c in columns)], rows)
    )


def _memory(figures: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    memory = figures.get("memory")
    if not memory:
        return ""
    text = (
        f"<h2>Did it copy the training data?</h2><p>The closest sample lies {memory['smallest_distance']:.2f} from a "
        f"training example; among unseen real data the smallest distance is {memory['smallest_distance_real']:.2f}. A "
        "copy would lie at 0.</p>"
    )
    if "neighbours" in pictures:
        caption = "Top: the ten samples closest to the training set. Bottom: the training example next to each."
        text += image(pictures["neighbours"], "samples over their nearest training examples", caption, pixels=True)
    return text


def _detection(figures: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    text = (
        "<h2>Does it notice what is not data?</h2><p>The model gives every input an <b>energy</b>: low means "
        "&ldquo;looks like the data&rdquo;, high means &ldquo;does not&rdquo;. Inputs that are not data should lie to "
        "the right of the blue ones.</p>"
    )
    if "energies" in pictures:
        text += image(pictures["energies"], "histograms of energies", "One strip a set; each to its own height.")
    rows = [
        [html.escape(r["out"]), *(f"{r[k]:.4f}" for k in ("auroc", "nn_auroc")), f"{r['chance']:.1f}"]
        + [f"{r[k]:.1%}" for k in ("fpr95", "nn_fpr95")]
        for r in figures.get("detection", [])
    ]
    if not rows:
        return text
    head = ["told apart from", "AUROC", "nearest neighbour", "chance", "passes at 95 %", "nearest neighbour"]
    return (
        text + "<p><b>AUROC</b>: how often an input of the set gets a higher energy than an unseen real one "
        "(1 is perfect). <b>Passes at 95 %</b>: share of the set that slips through a threshold that lets 95 % of "
        "real data pass (0 is perfect, 95 % is chance). <b>Nearest neighbour</b> is the one-line rival: distance to "
        "the training set.</p>" + table(head, rows, own=(1, 4))
    )


STATES = "these are probabilities of the data's states, exact: the constant is a sum over all states."
ESTIMATED_STATES = "these are probabilities of the data's states; the constant is estimated."
DENSITIES = "pixels carry uniform noise inside their grey level, so that the numbers compare with other papers' bits."


def _rival(likelihood: Mapping[str, Any]) -> tuple[str, str]:
    """(name, key) of the simple model beside; empty where there is none."""
    rivals = (("plain Gaussian", "gaussian"), ("independent units", "independent"))
    return next(((name, key) for name, key in rivals if f"nats_{key}" in likelihood), ("", ""))


def _likelihood(figures: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    found = figures.get("likelihood")
    text = "<h2>How much probability does it give to unseen data?</h2>"
    if not found:
        return text + (
            "<p>This model's energy has an unknown additive constant, so it has no log-likelihood, or one over a box "
            "that leaves out some of the rows; none is reported. "
            "A recipe that learns normalised energies (dual score matching) has one, and `thalweg evaluate --log-z` "
            "estimates the constant of another, with an interval.</p>"
        )
    error, (name, key) = f"{nats(found['nats'])} ± {nats(found['nats_error'])}", _rival(found)
    rival = nats(found[f"nats_{key}"]) if key else ""
    rows = [["log p of unseen data (nats; higher is better)", error, rival, ""]]
    if "nats_low" in found:
        ends = (found["nats_low"], found["nats_high"])
        interval = " to ".join("unbounded" if end is None else nats(end) for end in ends)
        rows.append(["the same, by the interval of the estimated constant (nats)", interval, "", ""])
    if "bits_per_dim" in found:
        bits = (f"{found[k]:.3f}" for k in ("bits_per_dim", f"bits_per_dim_{key}", "bits_per_dim_uniform"))
        rows.append(["bits a pixel (lower is better)", *bits])
    rows.append(["log p of the model's own samples (nats)", nats(found["nats_samples"]), "", ""])
    text += (
        f"<p>Mean over {found['num']:,} unseen examples. A <b>nat</b> is a factor of e in probability; "
        + ((ESTIMATED_STATES if "nats_low" in found else STATES) if "log_z" in found else DENSITIES)
        + "</p>"
        + table(["figure", "this model", name, "uniform"], rows)
    )
    if ode := found.get("ode"):
        text += (
            f"<p><b>A second opinion.</b> The same {ode['num']:.0f} examples, without trusting the constant that the "
            f"network learned (an integral along the probability flow): the network says {nats(ode['mean_network'])} "
            f"nats, the integral {nats(ode['mean_ode'])}; mean absolute gap {nats(ode['mean_abs_gap'])} nats "
            f"({ode['relative_gap']:.1%}), correlation {ode['correlation']:.3f}. Agreement would be 0 % and 1.</p>"
        )
    if "agreement" in pictures:
        text += image(pictures["agreement"], "log p by the network against the integral")
    return text


def _chains(figures: Mapping[str, Any]) -> str:
    found = figures.get("chains")
    if not found:
        return ""
    names = {
        "r_hat": "R-hat",
        "ess_bulk": "effective sample size",
        "ess_tail": "in the tails",
        "mcse_mean": "error of the mean",
        "mcse_sd": "error of the deviation",
    }
    rows = [[r["quantity"], *("-" if r[key] is None else cell(r[key]) for key in names)] for r in found["rows"]]
    text = (
        f"<h2>Do the chains agree?</h2><p><b>{html.escape(found['sentence'])}</b></p><p>{found['num_chains']} "
        f"independent chains of the model's own sampler, {html.escape(found['sampler'])}, from noise, in the model's "
        f"units; a step is accepted with probability {found['acceptance']:.1%}. <b>R-hat</b> compares the spread "
        "between chains with that within: 1 is perfect. The <b>effective sample size</b> is how many independent draws "
        "would estimate as well.</p>" + table(["quantity", *names.values()], rows)
    )
    if not found["adjusted"]:
        bias = found.get("bias") or {"sentence": "The sampler has no Metropolis test, so its law is biased."}
        text += f"<p>{html.escape(bias['sentence'])}</p>"
    return text


def _samples(pictures: Mapping[str, Any]) -> str:
    if "samples" not in pictures:
        return ""
    if "real" not in pictures:
        return "<h2>Samples</h2>" + image(pictures["samples"], "samples and real data")
    left = image(pictures["samples"], "samples of the model", "Made by the model, not chosen.", pixels=True)
    right = image(pictures["real"], "real data", "Real, unseen in training.", pixels=True)
    return f'<h2>Samples</h2><div class="pair">{left}{right}</div>'


def _free(tables: Mapping[str, list[Mapping[str, Any]]], pictures: Mapping[str, Any]) -> str:
    """Tables and pictures that no section knows, under their own names."""
    known = {"samples", "real", "energies", "neighbours", "agreement", "training"}
    text = ""
    if "training" in pictures:
        text += "<h2>Training</h2>" + image(pictures["training"], "training curves", "Wild first steps are cut off.")
    for name, rows in tables.items():
        if rows:
            cells = [[cell(v) for v in row.values()] for row in rows]
            text += f"<h2>{html.escape(name)}</h2>" + table([html.escape(k) for k in rows[0]], cells, own=())
    for name, picture in pictures.items():
        if name not in known:
            text += f"<h2>{html.escape(name)}</h2>" + image(picture, name)
    return text


def write_report(
    path: str | Path,
    *,
    title: str,
    command: str,
    figures: Mapping[str, Any],
    pictures: Mapping[str, "Figure | bytes"],
    tables: Mapping[str, list[Mapping[str, Any]]] | None = None,
    data: str = "",
    sections: Sequence[str] = (),
) -> Path:
    """Write the page and give its path; figures and pictures as `evaluate_bundle` or `evaluate_texts` returns them.

    command is what made the run and the report; data says in words on what it was trained and measured;
    sections are HTML that comes after them; tables (name to rows of one set of keys) come at the end. The file is
    complete or untouched.
    """
    require_finite(dict(figures))
    about = figures["about"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    own = (
        text_sections(figures, pictures)
        if about["kind"] == "text"
        else [
            _tiles(figures),
            _samples(pictures),
            _quality(figures),
            _memory(figures, pictures),
            _detection(figures, pictures),
            _likelihood(figures, pictures),
        ]
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        '<p class="soft">An energy-based model learns which inputs look like its data, and can '
        "make new ones. This page says how well it does both, beside what real data score and what chance gives.</p>",
        f"<p>{html.escape(data)}</p>" if data else "",
        *own,
        _chains(figures),
        *sections,
        _free(tables or {}, pictures),
        f"<h2>How this was made</h2><pre>{html.escape(command)}</pre><p class=soft>{about['num_train']:,} training "
        f"examples; {about['num_held_out']:,} unseen ones; seed {about['seed']}; model kind "
        f"{html.escape(about['kind'])}, shape {about['shape']}; {versions}.</p>",
    ]
    page = Template(PAGE.read_text("utf-8")).substitute(title=html.escape(title), body="\n".join(parts))
    write_bytes(path, page.encode())
    return Path(path)


def write_figures(path: str | Path, figures: Mapping[str, Any]) -> Path:
    """The same figures as `evaluation.json`: finite numbers only."""
    require_finite(dict(figures))
    write_json(path, dict(figures))
    return Path(path)
