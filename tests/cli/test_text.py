"""The commands on texts: train, sample, score and evaluate work, every other refuses in one line."""

import csv
import json

import pytest
import torch

from thalweg.bundle.files import load

pytestmark = pytest.mark.usefixtures("words")


@pytest.fixture
def run(words, tmp_path):
    """A copy of the run, which commands may write to."""
    words.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def suspects(tmp_path):
    path = tmp_path / "suspects.txt"
    path.write_text("bama\n\n  xyz \nb,a\n")
    return path


def test_train_and_evaluate_leave_a_report(call, word_files, tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.bundle.chain_length.MOST", 50)  # steps of a chain, 1,000 of which take ten seconds
    recipe = word_files / "words.yaml"
    code, result, err = call("train", word_files / "words.txt", "--recipe", recipe, "--steps", 3, "-o", "run", "--json")
    assert code == 0, err
    assert result["data"]["kind"] == "text"
    rows = result["figures"]["detection"]
    assert [row["out"] for row in rows] == ["one-letter typos", "shuffled letters", "draws of the bigram law"]
    assert all(0 <= row[f"{law}auroc"] <= 1 for row in rows for law in ("", "bigram_", "ngram_"))
    assert "preview.txt" in err[-1]
    assert "bigram law" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "one-letter typos" in (tmp_path / "run" / "evaluation.json").read_text("utf-8")
    code, again, _ = call("evaluate", "run", "-n", 20, "--json")
    assert (code, again["about"]["num_samples"]) == (0, 20)


def test_sample_prints_the_texts(forked, run):
    code, out, _ = forked("sample", run, "-n", 5, "--num-steps", 20).wait()
    bundle = load(run)
    assert code == 0
    assert out.splitlines() == bundle.texts(bundle.sample(5, num_steps=20))


def test_sample_writes_what_is_asked_for(call, run, tmp_path):
    wanted = load(run).texts(load(run).sample(5, num_steps=20))
    code, result, _ = call("sample", run, "-n", 5, "--num-steps", 20, "--json")
    assert (code, result["texts"], result["file"]) == (0, wanted, None)
    for name in ("some.txt", "some.csv", "some.parquet"):
        assert call("sample", run, "-n", 5, "--num-steps", 20, "-o", name)[0] == 0
    assert (tmp_path / "some.txt").read_text("utf-8").splitlines() == wanted
    with (tmp_path / "some.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == wanted
    assert list(rows[0]) == ["text", "energy"]
    assert call("sample", run, "-n", 5, "--num-steps", 20, "--npy", "some.npy")[0] == 0
    assert not (tmp_path / "samples.png").exists()
    code, _, err = call("sample", run, "-o", "some.png")
    assert (code, len(err)) == (2, 1)


def test_score_names_each_row_by_its_text(call, run, suspects, tmp_path):
    code, result, _ = call("score", run, suspects, "-o", "s.csv", "--json")
    assert (code, result["rows"]) == (0, 3)
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["text", "energy", "log_prob", "p_value", "flag"]
    assert [row["text"] for row in rows] == ["bama", "xyz", "b,a"]
    found = load(run).energy(["bama", "xyz", "b,a"])
    torch.testing.assert_close(torch.tensor([float(row["energy"]) for row in rows]), found)
    assert call("score", run, suspects, "-o", "s.npy")[0] == 0


@pytest.mark.parametrize(
    ("content", "part"),
    [("bama\n\nbamabama\n", "line 3"), ("", "holds no text"), (b"a\n\xff", "line 2 is not UTF-8")],
)
def test_score_names_the_line_that_it_cannot_take(call, run, tmp_path, content, part):
    (tmp_path / "bad.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = call("score", run, "bad.txt", "-o", "s.csv")
    assert (code, len(err)) == (2, 1)
    assert part in err[0]
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(
    "command",
    [
        "inpaint run suspects.txt --mask center:0.5 -o x.npy",
        "landscape run -o x.png",
        "rerank run suspects.txt --keep 1",
        "classify run suspects.txt",
        "score run table.csv",
        "score run suspects.txt --header",
        "score run suspects.txt --drop a",
        "score run nothing.txt",
        "score DIGITS suspects.txt",
        "classify DIGITS suspects.txt",
        "inpaint DIGITS suspects.txt --mask center:0.5",
        "rerank fit suspects.txt suspects.txt -o judge",
        "detect fit suspects.txt -o alarm",
        "sample run --label 1",
        "train suspects.txt -o other --recipe dual",
        "train suspects.txt -o other --header",
        "train suspects.txt -o other --drop a",
        "train suspects.txt -o other --hub",
        "train table.csv -o other --recipe WORDS",
        "train table.csv -o other data.length=3",
    ],
)
def test_whatever_does_not_take_texts_says_so_in_one_line(call, run, suspects, tmp_path, digits, word_files, command):
    (tmp_path / "table.csv").write_text("a,b\n" + "1,2\n3,5\n" * 20)
    names = {"DIGITS": digits.path, "WORDS": word_files / "words.yaml"}
    code, _, err = call(*(names.get(word, word) for word in command.split()))
    assert (code, len(err)) == (2, 1), err
    assert not (tmp_path / "other").exists()


def test_a_text_is_scored_by_a_run_that_has_not_ended(call, word_files, tmp_path):
    recipe = word_files / "words.yaml"
    words = ("train", word_files / "words.txt", "--recipe", recipe, "--steps", 4, "-o", "run", "--no-report")
    assert call(*words, "--checkpoint-every", 2)[0] == 0
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / "model.safetensors").unlink()
    (tmp_path / "s.txt").write_text("bama\n")
    assert call("score", "run", "s.txt", "-o", "s.csv")[0] == 0
    assert "p_value" not in (tmp_path / "s.csv").read_text()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["kind"] == "text"


def test_score_explains_flagged_texts(call, run, suspects, tmp_path):
    assert call("score", run, suspects, "--explain", "--alpha", 1, "-o", "s.csv")[0] == 0
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = load(run).explain(["bama", "xyz", "b,a"])
    for row, found in zip(rows, wanted, strict=True):
        assert found.worst is not None
        assert (row["repair"], row["letter"]) == (found.repair, found.text[found.worst])
        assert (int(row["place"]), row["expected"]) == (found.worst + 1, found.expected[found.worst])
        assert float(row["surprise"]) == pytest.approx(found.surprise[found.worst], abs=1e-3)
    assert call("score", run, suspects, "--explain", "--alpha", 0, "-o", "none.parquet")[0] == 0
    assert call("score", run, suspects, "--explain", "--alpha", 0, "-o", "none.csv")[0] == 0
    assert (tmp_path / "none.csv").read_text().splitlines()[1].endswith(",,,,,")


@pytest.mark.parametrize("command", ["score run suspects.txt --explain -o s.npy", "score DIGITS x.npy --explain"])
def test_what_has_no_letters_is_not_explained(call, run, suspects, digits, command):
    code, _, err = call(*(digits.path if word == "DIGITS" else word for word in command.split()))
    assert (code, len(err)) == (2, 1)


@pytest.mark.parametrize("recipe", ["dual", "dual-vector", "pcd-transformer"])
def test_a_recipe_for_numbers_is_refused_by_what_it_is_for(call, word_files, recipe):
    code, _, err = call("train", word_files / "words.txt", "--recipe", recipe, "--steps", 3, "-o", "run")
    assert (code, len(err)) == (2, 1)
    assert f"must be a recipe for texts, as the data are; {recipe} is for numbers" in err[0]
    assert "take words" in err[0]


def test_texts_without_a_recipe_get_words(call, word_files, tmp_path):
    small = ["energy.width=8", "energy.depth=1", "energy.num_heads=2", "train.batch_size=16", "train.precision=fp32"]
    code, result, err = call("train", word_files / "words.txt", "--steps", 3, "--no-report", "--json", *small)
    assert code == 0, err
    assert result["run"] == "runs/words-words"
    bundle = load(tmp_path / "runs" / "words-words")
    assert bundle.config["recipe"] == "words"
    assert bundle.normalised
