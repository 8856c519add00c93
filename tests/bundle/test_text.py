"""Bundles of texts: energies, samples and scores of str, stored and read again, and configs of strangers."""

import json
import os
import signal
import time

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import thalweg
from thalweg.bundle.files import load
from thalweg.bundle.model_units import initial_positions
from thalweg.core import store
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.rng import generator
from thalweg.data.alphabet import MARK
from thalweg.evaluate.ngram import NGram
from thalweg.normaliser.estimate import LogProb
from thalweg.run.fit import Request, fit
from thalweg.training.metrics_log import read_metrics


def test_a_list_of_str_and_its_codes_have_one_energy(words):
    texts = ["bama", "xyz", "", "l"]
    codes = words.alphabet.encode(texts)
    assert torch.equal(words.energy(texts), words.energy(codes))
    assert torch.equal(words.energy(np.array(texts)), words.energy(codes.numpy()))
    assert torch.equal(words.log_prob(texts), -words.energy(texts))
    assert set(words.score(texts)) == {"energy", "log_prob", "p_value", "flag"}
    one_by_one = torch.cat([words.energy([text]) for text in texts])
    torch.testing.assert_close(one_by_one, words.energy(texts), rtol=1e-4, atol=1e-4)


def test_texts_in_other_containers(words):
    texts = ["bama", "xyz"]
    for x in (tuple(texts), pd.Series(texts), pl.Series(texts), np.array(texts, dtype=object)):
        assert torch.equal(words.energy(x), words.energy(texts))
    for bad in (set(texts), iter(texts), [texts], [b"bama"], [None, "bama"]):
        with pytest.raises(UserError) as error:
            words.energy(bad)
        assert "numpy" not in str(error.value)


def test_its_law_sums_to_nearly_one_over_what_it_knows(words, word_list):
    """Noise-contrastive estimation learns the constant; the bigram law alone gives these words far less."""
    known = words.log_prob(word_list).exp().sum()
    assert 0.1 < float(known) < 1.5


@pytest.mark.parametrize(
    "bad",
    [
        "bama",
        [],
        ["bama", 3],
        ["b" * 40],
        ["\ud800"],
        torch.zeros(2, 3),
        torch.full((1, 6), 0.5),
        torch.full((1, 6), 99.0),
        torch.tensor([[2.0, 0, 2, 0, 0, 0]]),
        torch.zeros(1, 6, requires_grad=True),
    ],
    ids=lambda bad: repr(bad)[:30],
)
def test_what_is_no_text_is_refused(words, bad):
    assert words.shape == (6,)
    with pytest.raises(UserError) as error:
        words.energy(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nothing", [[], (), torch.zeros(0, 6)], ids=repr)
def test_no_texts_are_refused_as_no_rows_are(words, nothing):
    for call in (words.energy, words.log_prob, words.score):
        with pytest.raises(UserError, match=r"one row or more; the shape is \(0, 6\)"):
            call(nothing)


def test_samples_are_codes_of_texts_and_do_not_depend_on_their_number(words):
    codes = words.sample(12, seed=3, num_steps=40)
    texts = words.texts(codes)
    assert codes.shape == (12, 6)
    assert torch.equal(words.alphabet.check_codes(codes), codes)
    assert torch.equal(
        words.alphabet.encode([t for t in texts if MARK not in t]), codes[[MARK not in t for t in texts]]
    )
    assert words.texts(words.sample(5, seed=3, num_steps=40)) == texts[:5]
    assert words.sample(0).shape == (0, 6)
    assert words.texts(codes[0:0]) == []


def test_samples_are_like_the_words(words, word_list):
    """In log-probability of a bigram law of the words; draws of uniform letters are not."""
    law = NGram(order=2).fit(word_list)
    texts = words.texts(words.sample(60, seed=1, num_steps=200))
    rng = np.random.default_rng(0)
    noise = ["".join(rng.choice(list(words.alphabet.letters), 4)) for _ in range(60)]
    real = law.log_prob(word_list).mean()
    assert law.log_prob(texts).mean() > real - 6
    assert law.log_prob(noise).mean() < real - 6


def test_a_folder_and_a_hub_copy_give_the_same_energies(words, tmp_path, word_list):
    words.save_pretrained(tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert again.alphabet == words.alphabet
    assert (again.kind, again.energy_shape) == ("text", words.energy_shape)
    assert torch.equal(again.energy(word_list), words.energy(word_list))
    assert not (tmp_path / "copy" / "prior.safetensors").exists()
    card = (tmp_path / "copy" / "card.md").read_text("utf-8")
    assert words.alphabet.letters in card
    assert "up to 6 letters" in card


@pytest.mark.parametrize(
    "change",
    [
        {"alphabet": None},
        {"alphabet": {"letters": "ab", "length": 6}},
        {"alphabet": {"letters": "ba", "length": 6}},
        {"alphabet": {"letters": "aabdefgilmnostu", "length": 6}},
        {"alphabet": {"letters": 7, "length": 6}},
        {"alphabet": {"letters": "\x1bbdefgilmnost", "length": 6}},
        {"alphabet": {"letters": "abdefgilmnos\x9b", "length": 6}},
        {"shape": [7]},
        {"shape": [6, 15]},
        {"kind": "vector"},
        {"kind": "sound"},
    ],
    ids=repr,
)
def test_a_config_of_a_stranger_is_checked_before_it_is_used(words, tmp_path, change):
    words.save_pretrained(tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["data"] |= change
    store.write_json(tmp_path / "copy" / "config.json", config)
    (tmp_path / "copy" / "manifest.json").unlink()
    store.seal(tmp_path / "copy")
    with pytest.raises((DamagedFile, UserError)):
        load(tmp_path / "copy")


def test_a_huge_alphabet_takes_no_memory(words, tmp_path):
    words.save_pretrained(tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 60_000)[:50_000]))
    letters = "".join(letter for letter in letters if not "\ud800" <= letter <= "\udfff")
    config["data"] |= {"alphabet": {"letters": letters, "length": 60_000}, "shape": [60_000]}
    config["run"]["transform"]["num_states"] = len(letters) + 2
    store.write_json(tmp_path / "copy" / "config.json", config)
    (tmp_path / "copy" / "manifest.json").unlink()
    store.seal(tmp_path / "copy")
    began = time.monotonic()
    with pytest.raises(DamagedFile):
        load(tmp_path / "copy")
    assert time.monotonic() - began < 5


def test_an_estimated_constant_is_taken_for_texts_too(words):
    words_, words.normalised = words.normalised, False
    config = words.config
    try:
        found = words.log_z(store=False, num_chains=16, max_steps=16)
        assert np.isfinite(found.estimate)
        words.config = {**config, "log_z": {**found._asdict(), "temperature": 1.0, "support": "states"}}
        log_p = words.log_prob(["bama"])
        assert isinstance(log_p, LogProb)
    finally:
        words.normalised, words.config = words_, config


def test_texts_in_memory_train_as_a_file_does(word_list, word_files):
    bundle = thalweg.train(word_files / "words.yaml", word_list, steps=3, progress=False)
    assert bundle.kind == "text"
    assert bundle.energy(["bama", "zzzz"]).shape == (2,)
    assert bundle.config["data"]["alphabet"] == bundle.alphabet.to_dict()


def test_an_application_for_numbers_refuses_a_model_of_texts(words):
    from thalweg.apps.landscape.survey import survey
    from thalweg.apps.rerank.reranker import EnergyReranker

    x = words.alphabet.encode(["bama"] * 3)
    for call in (
        lambda: words.inpaint(x, x > 0),
        lambda: words.classify(x),
        lambda: survey(words, x),
        lambda: EnergyReranker(words),
    ):
        with pytest.raises(UserError, match="one of texts"):
            call()


def test_a_model_of_numbers_refuses_texts(digits):
    for call in (digits.energy, digits.score, digits.texts):
        with pytest.raises(UserError):
            call(["bama"])


# Runs of texts -----------------------------------------------------------------------------------------------------


def request(word_files, **changes):
    return Request(data=word_files / "words.txt", recipe=word_files / "words.yaml", **changes)


def test_a_run_that_is_stopped_goes_on_with_the_same_bits(words, word_files, tmp_path, monkeypatch):
    from thalweg.run import fit as runs
    from thalweg.training.trainer import Interrupted

    class Stopping(runs.Previews):
        def __call__(self, state, plan):
            super().__call__(state, plan)
            if state.step == 17:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs, "Previews", Stopping)
    overrides = ["train.precision=fp32"]
    with pytest.raises(Interrupted):
        fit(request(word_files, overrides=overrides), tmp_path / "run", tensorboard=False)
    assert "must hold" not in str(load(tmp_path / "run").energy(["bama"]))  # from its checkpoint
    monkeypatch.undo()
    again = fit(request(word_files, overrides=overrides), tmp_path / "run", tensorboard=False, resume=True)
    for name, value in words.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert torch.equal(again.held_out_energies, words.held_out_energies)
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(b.path)] for b in (words, again)]
    assert rows[0] == rows[1]
    assert (tmp_path / "run" / "preview.txt").read_bytes() == (words.path / "preview.txt").read_bytes()


def test_the_preview_is_of_texts(words):
    lines = (words.path / "preview.txt").read_text("utf-8").splitlines()
    assert len(lines) == 20
    assert not (words.path / "preview.png").exists()


def test_data_that_were_moved_are_said_to_be_gone(words, tmp_path):
    from thalweg.bundle.dataset import data_of

    words.save_pretrained(tmp_path / "copy")
    other = load(tmp_path / "copy")
    other.config["run"]["data"]["name"] = "moved.txt"
    with pytest.raises(UserError, match=r"data are there; moved\.txt is not") as error:
        data_of(other)
    assert "put them back" in str(error.value.hint)


def test_a_changed_file_is_not_gone_on_with(words, word_files, tmp_path):
    from thalweg.bundle.dataset import data_of

    words.save_pretrained(tmp_path / "copy")
    other = load(tmp_path / "copy")
    (tmp_path / "changed.txt").write_text((word_files / "words.txt").read_text().replace("bama", "bamo"))
    other.config["run"]["data"]["name"] = str(tmp_path / "changed.txt")
    with pytest.raises(UserError, match="changed"):
        data_of(other)
    assert data_of(words).alphabet == words.alphabet


@pytest.mark.parametrize(
    ("data", "recipe", "overrides", "argument"),
    [
        ("words.txt", "dual", [], "recipe"),
        ("words.txt", "pcd", [], "recipe"),
        ("words.txt", "rbm", [], "recipe"),
        ("words.txt", "jem", [], "recipe"),
        ("two-moons", "words.yaml", [], "recipe"),
        ("digits", "words.yaml", [], "recipe"),
        ("words.txt", "words.yaml", ["transform.type=thalweg.data.transform:Standardize"], "transform"),
        ("words.txt", "words.yaml", ["transform.num_states=99"], "transform"),
        ("words.txt", "words.yaml", ["data.length=3"], "words.txt, line 1"),
        ("words.txt", "words.yaml", ["data.targets=[a]"], "data.targets"),
        ("words.txt", "words.yaml", ["energy.type=thalweg.energy.potts:PottsEnergy"], None),
        ("two-moons", "toy2d", ["data.length=3"], "data.length"),
    ],
)
def test_what_does_not_fit_texts_is_refused(word_files, tmp_path, monkeypatch, data, recipe, overrides, argument):
    monkeypatch.chdir(word_files)
    with pytest.raises(UserError) as error:
        fit(Request(data=data, recipe=recipe, steps=2, overrides=overrides), tmp_path / "run", tensorboard=False)
    assert argument in (None, error.value.argument)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_length_of_the_model_can_be_given(word_files, tmp_path):
    run = fit(request(word_files, steps=2, overrides=["data.length=9"]), tmp_path / "run", tensorboard=False)
    assert run.shape == (9,)
    with pytest.raises(UserError, match="has 10 letters"):
        run.energy(["a" * 10])


# Where chains start and end -----------------------------------------------------------------------------------------


def test_chains_start_at_draws_of_the_base_law_or_at_uniform_texts(words):
    start = initial_positions("text", words.transform, (200, 6), generator(0, "a"), words.model)
    uniforms = torch.rand(200, words.model.num_uniforms, generator=generator(0, "a"))
    assert torch.equal(start, words.model.base_draws(uniforms))
    other = initial_positions("text", words.transform, (2000, 6), generator(0, "a"), None)
    codes = words.alphabet.check_codes(words.transform.inverse(other))
    lengths = (codes > 0).sum(1)
    assert torch.equal(other, words.transform.forward(codes))
    counts = lengths.bincount(minlength=7)
    assert counts[0] == 0
    assert (counts[1:] - 2000 / 6).abs().max() < 5 * (2000 * 5 / 36) ** 0.5
    letters = codes[codes > 0].long().bincount(minlength=words.alphabet.num_states)[1:]
    expected = lengths.sum() / len(letters)
    assert (letters - expected).abs().max() < 5 * expected**0.5


def test_what_follows_the_end_of_a_sample_is_cut_off(words):
    codes = torch.tensor([[2.0, 0, 3, 0, 4, 5], [2, 3, 4, 5, 6, 7]])
    expected = torch.tensor([[2.0, 0, 0, 0, 0, 0], [2, 3, 4, 5, 6, 7]])
    assert torch.equal(words.decode(words.transform.forward(codes)), expected)
