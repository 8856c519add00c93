"""The judge against the local server: verdicts by both protocols, judges that the controls expose, failures."""

import json
import logging
from collections import Counter

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.monitor.vision.judge import VisionJudge
from thalweg.monitor.vision.opinion import Opinion, SampleJudge

VERDICTS = {"good": "good", "noise": "noise", "one class": "alike", "duplicates": "alike", "copies": "copies"}
QUESTIONS = 2 * (7 + 1 + 1)  # controls, one sheet of samples, one of nearest data, in both orders


@pytest.mark.parametrize("client", ["anthropic", "openai"])
def test_verdicts_of_a_model_that_sees(client, server, settings, sets, real, tmp_path):
    judge = VisionJudge(settings(client), tmp_path)
    assert isinstance(judge, SampleJudge)
    for name in VERDICTS if client == "openai" else ("copies",):
        verdict = VERDICTS[name]
        opinion = judge.compare(sets[name], real)
        assert (opinion.reliable, opinion.verdict) == (True, verdict), (name, opinion.sentence)
        assert all(control.passed for control in opinion.controls)
        assert opinion.questions == QUESTIONS
        assert (opinion.model, opinion.host, opinion.temperature) == ("tiny", "127.0.0.1", None)
        assert opinion.prompt_version
    assert {path for path, *_ in server.seen} == {"/v1/messages" if client == "anthropic" else "/v1/chat/completions"}


def test_each_sheet_is_asked_in_both_orders_with_the_same_words(server, settings, sets, real, tmp_path):
    """The words and fields of all requests are the same, controls and samples alike: nothing tells which is real."""
    VisionJudge(settings(), tmp_path).compare(sets["good"], real)
    images, rest = [], set()
    for _, _, body in server.seen:
        images.append(body["messages"][1]["content"].pop(0)["image_url"]["url"])
        rest.add(json.dumps(body, sort_keys=True))
    assert len(rest) == 1
    assert len(set(images)) == len(images) == QUESTIONS


@pytest.mark.parametrize("name", ["first", "good marks", "obedient"])
def test_controls_expose_a_judge(name, server, settings, sets, real, judges, tmp_path):
    server.model = judges[name]
    opinion = VisionJudge(settings(), tmp_path).compare(sets["good"], real)
    assert not opinion.reliable
    failed = [control.kind for control in opinion.controls if not control.passed]
    words = f"it failed these controls: {', '.join(failed)}"
    assert opinion.sentence == f"Vision judge tiny is not listened to: {words}."
    assert (failed == ["injected text"]) == (name == "obedient")
    assert opinion.questions == 14, "a judge that is not listened to is not asked about the samples"
    assert (opinion.flip_rate == 1.0) == (name == "first")


def test_the_same_question_is_never_sent_twice(server, settings, sets, real, tmp_path):
    first = VisionJudge(settings(), tmp_path).compare(sets["good"], real)
    again = VisionJudge(settings(), tmp_path).compare(sets["good"], real)
    assert len(server.seen) == first.images_sent == QUESTIONS
    assert again.images_sent == 0
    assert again == first.model_copy(update={"images_sent": 0})


def test_a_step_is_asked_once_also_where_there_was_no_answer(server, settings, sets, real, tmp_path):
    server.faults.extend([400])
    first = VisionJudge(settings(), tmp_path).compare(sets["good"], real, step=200)
    again = VisionJudge(settings(), tmp_path).compare(sets["good"], real, step=200)
    assert len(server.seen) == 1
    assert again == first
    assert not first.reliable
    assert (first.step, first.verdict) == (200, "other")
    other = VisionJudge(settings(), tmp_path).compare(sets["one class"], real, step=200)
    assert (other.reliable, other.verdict) == (True, "alike"), "other samples at this step, as after a rollback"


def test_an_interruption_loses_no_answer(server, settings, sets, real, tmp_path, monkeypatch):
    judge = VisionJudge(settings(), tmp_path)
    ask, calls = judge.transport._client.ask, iter(range(99))

    def interrupted(request):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return ask(request)

    monkeypatch.setattr(judge.transport._client, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge.compare(sets["good"], real, step=3)
    opinion = VisionJudge(settings(), tmp_path).compare(sets["good"], real, step=3)
    assert (opinion.reliable, opinion.images_sent) == (True, QUESTIONS - 7)
    assert len(server.seen) == QUESTIONS


def test_bytes_are_the_same_pictures(server, settings, sets, real, tmp_path):
    """Images as uint8, which the digits are on disk, give the sheets and the answers of their floats."""
    judge = VisionJudge(settings(), tmp_path)
    judge.compare(sets["good"], real)
    judge.compare((255 * sets["good"]).round().byte(), (255 * real).round().byte())
    assert len(server.seen) == QUESTIONS


FAILURES = {
    "no network": ["closed"],
    "busy for ever": [503] * 9,
    "wrong key": [401],
    "no json": ["no json"],
    "spend cap": [],
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_an_opinion_that_is_not_reliable(name, server, settings, sets, real, tmp_path):
    more = {"max_retries": 2}
    if name == "no network":
        more["base_url"] = "http://127.0.0.1:9/v1"
    if name == "spend cap":
        more["max_cost"] = 0.5
    server.faults.extend(FAILURES[name])
    opinion = VisionJudge(settings(**more), tmp_path).compare(sets["good"], real, step=1)
    assert not opinion.reliable
    assert opinion.sentence.startswith("The vision judge gave no opinion: ")
    assert opinion.problem
    if name == "spend cap":
        assert "cap of $0.50" in opinion.problem
        assert 0 < opinion.cost <= 0.5
        assert opinion.questions > 0
        assert opinion.controls, "what was answered so far"


@pytest.mark.parametrize("fault", ["refusal", "malformed", "wrong word"])
def test_a_question_without_an_answer_fails_its_control(fault, server, settings, sets, real, tmp_path):
    server.faults.extend([fault, fault])
    opinion = VisionJudge(settings(), tmp_path).compare(sets["good"], real)
    (failed,) = [control for control in opinion.controls if not control.passed]
    assert failed.kind == "real"
    assert not opinion.reliable
    assert ("declines" in failed.reasons[0]) == (fault == "refusal")


def test_samples_that_are_not_finite_are_not_sent(server, settings, sets, real, tmp_path):
    broken = sets["good"].clone()
    broken[0, 0, 0, 0] = torch.nan
    opinion = VisionJudge(settings(), tmp_path).compare(broken, real)
    assert not opinion.reliable
    assert "not finite" in opinion.sentence
    assert not server.seen


@pytest.mark.parametrize(
    ("samples", "count"), [(torch.rand(9, 2), 400), (torch.rand(9, 1, 8, 8), 400), (torch.rand(3, 1, 28, 28), 400)]
)
def test_what_is_no_set_of_images_is_refused(samples, count, server, settings, real, tmp_path):
    with pytest.raises(UserError) as caught:
        VisionJudge(settings(), tmp_path).compare(samples, real[:count])
    assert caught.value.argument == "samples"


def test_rank_puts_sets_in_their_order(server, settings, sets, real, tmp_path):
    judge = VisionJudge(settings(sheets=2), tmp_path)
    ranking = judge.rank({"late": sets["good"], "collapsed": sets["duplicates"], "early": sets["noise"]}, real)
    assert ranking.reliable
    assert set(ranking.order()[:2]) == {"late", "real"}
    assert ranking.order()[2:] == ["collapsed", "early"]
    strengths = {row.name: row for row in ranking.strengths}
    assert strengths["early"].strength < strengths["late"].low
    assert abs(strengths["late"].strength - strengths["real"].strength) < 1e-6, "ties are half a win each"
    assert ranking.sentence.startswith("Vision judge tiny, strengths in nats: ")


def test_rank_ends_politely_at_the_cap(server, settings, sets, real, tmp_path):
    asked = settings(max_calls=14 + 5)
    ranking = VisionJudge(asked, tmp_path).rank({"late": sets["good"], "early": sets["noise"]}, real)
    assert not ranking.reliable
    assert "cap of 19 requests" in ranking.problem
    assert ranking.order()[-1] == "early"
    more = VisionJudge(settings(), tmp_path).rank({"late": sets["good"], "early": sets["noise"]}, real)
    assert more.reliable
    assert len(server.seen) == 14 + 3 * 2, "what was answered is not asked again"


def test_rank_does_not_listen_to_a_judge_that_fails(server, settings, sets, real, judges, tmp_path):
    server.model = judges["first"]
    ranking = VisionJudge(settings(), tmp_path).rank({"late": sets["good"]}, real)
    assert not ranking.reliable
    assert ranking.strengths == []
    assert "not listened to" in ranking.sentence


@pytest.mark.parametrize("client", ["anthropic", "openai"])
def test_the_key_is_nowhere(client, server, settings, sets, real, tmp_path, caplog, monkeypatch):
    """Not in cache, ledger, opinion, log of any library, error or repr; a server that quotes it changes nothing."""
    key = "sk-very-secret-0123456789"
    caplog.set_level(logging.DEBUG)
    server.faults.extend(["echo", "echo", (429, {"retry-after": "0.01"}, key), (400, {}, f"bad key {key}")])
    judge = VisionJudge(settings(client), tmp_path)
    opinions = [judge.compare(sets["good"], real, step=step) for step in range(2)]
    assert opinions[0].problem
    assert "[key]" in opinions[0].problem
    sent = Counter(key in str(headers) for _, headers, _ in server.seen)
    assert sent == {True: len(server.seen)}, "the server does get it"
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) > 5
    texts += [caplog.text, repr(judge), repr(vars(judge)), repr(judge.settings), str(opinions), *map(repr, opinions)]
    assert not any(key in text for text in texts)
    assert Opinion.model_validate_json(opinions[1].model_dump_json()) == opinions[1]
