"""What goes out and comes back: permission, key, retries, time-outs, repair, spend cap, cache, ledger."""

import json
import logging
import sys
import time
from email.utils import formatdate

import pytest
import torch
from pydantic import ValidationError

from thalweg.core.errors import UserError
from thalweg.monitor.vision import contact_sheet
from thalweg.monitor.vision.budget import CapReached
from thalweg.monitor.vision.clients.base import Rejected, Unavailable, find_client, retry_after
from thalweg.monitor.vision.settings import VisionSettings
from thalweg.monitor.vision.transport import Transport

CLIENTS = pytest.mark.parametrize("client", ["anthropic", "openai"])


@pytest.fixture(scope="module")
def sheet(pictures):
    x, _ = pictures
    return contact_sheet.draw(x[:16], x[16:32])


def ask(settings, folder, sheet):
    return Transport(settings, folder).ask(sheet, 16)


@CLIENTS
def test_nothing_is_sent_before_the_user_turned_it_on(client, server, settings, sheet, tmp_path):
    with pytest.raises(UserError) as caught:
        ask(settings(client, send_images=False), tmp_path, sheet)
    assert caught.value.argument == "send_images"
    assert "--send-images" in str(caught.value)
    assert VisionSettings(model="m").send_images is False
    assert not server.seen
    assert not list(tmp_path.iterdir())


def test_each_sending_is_logged(server, settings, sheet, tmp_path, caplog):
    caplog.set_level(logging.INFO, "thalweg")
    server.faults.append(500)
    ask(settings(), tmp_path, sheet)
    wanted = f"sending 1 image ({len(sheet)} bytes) to 127.0.0.1 for tiny"
    assert [record.message for record in caplog.records].count(wanted) == 2
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    sent = [line for line in lines if "sent" in line]
    assert [(line["host"], line["images"], line["bytes"]) for line in sent] == [("127.0.0.1", 1, len(sheet))] * 2
    assert [line["cost"] for line in lines if "cost" in line] == [pytest.approx((1000 * 15 + 200 * 75) / 1e6)]


def test_a_missing_key_is_one_line_that_names_the_variable(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("TINY_KEY")
    with pytest.raises(UserError) as caught:
        Transport(settings(), tmp_path)
    assert caught.value.argument == "TINY_KEY"


def test_whose_key_goes_where(settings, monkeypatch):
    """A server at another address is never sent the key of the client's own, unless the user names the variable."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    own = VisionSettings(client="openai", model="m")
    assert (own.key(), own.host()) == ("sk-own", "api.openai.com")
    other = VisionSettings(client="openai", model="m", base_url="http://127.0.0.1:1/v1")
    assert (other.key(), other.has_key()) == ("none", True)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert not own.has_key()
    assert VisionSettings(client="anthropic", model="m").variable() == "ANTHROPIC_API_KEY"


@CLIENTS
def test_the_environment_cannot_move_the_server(client, server, settings, sheet, tmp_path, monkeypatch):
    """Images go to the host that is logged, whatever the client's own variable says; redirects are not followed."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    assert ask(settings(client), tmp_path, sheet).answer is not None
    server.faults.append((307, {"location": "http://127.0.0.1:9/v1/messages"}, "moved"))
    with pytest.raises(Rejected, match="307"):
        ask(settings(client, temperature=1.0), tmp_path, sheet)


def test_the_account_of_the_environment_is_not_told_to_other_servers(server, settings, sheet, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-mine")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    ask(settings(key_variable=None), tmp_path, sheet)
    assert "mine" not in str(server.seen[0][1])


def test_a_missing_library_names_the_extra(settings, tmp_path, monkeypatch):
    for client in ("anthropic", "openai"):
        monkeypatch.setitem(sys.modules, client, None)
        with pytest.raises(UserError, match="thalweg\\[vision\\]"):
            Transport(settings(client), tmp_path)


def test_an_unknown_client_is_refused():
    with pytest.raises(UserError, match="did you mean 'openai'"):
        find_client("opeani")


@CLIENTS
@pytest.mark.parametrize("fault", [429, 408, 500, 503, 529])
def test_a_busy_server_is_asked_again(client, fault, server, settings, sheet, tmp_path):
    server.faults.extend([fault, fault])
    assert ask(settings(client), tmp_path, sheet).answer is not None
    assert len(server.seen) == 3


@CLIENTS
def test_retry_after_is_honoured(client, server, settings, sheet, tmp_path):
    server.faults.append((429, {"retry-after": "0.4"}, "slow down"))
    start = time.monotonic()
    assert ask(settings(client), tmp_path, sheet).answer is not None
    assert time.monotonic() - start >= 0.4, "a back-off of 0.01 s alone would be shorter"
    server.faults.append((429, {"retry-after": "3600"}, "come back"))
    with pytest.raises(Unavailable):
        ask(settings(client, temperature=1.0), tmp_path, sheet)


def test_retry_after_may_be_a_date():
    assert 50 < retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_waits_double(server, settings, sheet, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("thalweg.monitor.vision.transport.time.sleep", waits.append)
    server.faults.extend([500] * 9)
    with pytest.raises(Unavailable, match="500"):
        ask(settings(backoff=1.0, max_retries=3), tmp_path, sheet)
    assert waits == [1.0, 2.0, 4.0]
    assert len(server.seen) == 4


@CLIENTS
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_what_no_retry_can_help_is_asked_once(client, status, server, settings, sheet, tmp_path):
    server.faults.append(status)
    with pytest.raises(Rejected, match=str(status)):
        ask(settings(client), tmp_path, sheet)
    assert len(server.seen) == 1


@CLIENTS
@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_a_time_out(client, fault, server, settings, sheet, tmp_path):
    """No byte in time, or a byte now and then without an end; what may be billed counts."""
    server.faults.extend([fault, fault])
    made = Transport(settings(client, timeout=0.15, max_retries=1), tmp_path)
    with pytest.raises(Unavailable, match="in time"):
        made.ask(sheet, 16)
    assert len(server.seen) == 2
    assert made.budget.spent > 0


def test_no_network(settings, sheet, tmp_path):
    start = time.monotonic()
    with pytest.raises(Unavailable, match="reached"):
        ask(settings(base_url="http://127.0.0.1:9/v1", max_retries=1), tmp_path, sheet)
    assert time.monotonic() - start < 5


@CLIENTS
def test_one_repair(client, server, settings, sheet, tmp_path):
    server.faults.append("wrong word")
    assert ask(settings(client), tmp_path, sheet).answer is not None
    assert len(server.seen) == 2
    messages = server.seen[1][2]["messages"]
    assert messages[-2]["role"] == "assistant"
    assert "better" in messages[-1]["content"]
    server.faults.extend(["malformed", "malformed"])
    record = ask(settings(client, temperature=1.0), tmp_path, sheet)
    assert record.answer is None
    assert record.problem
    assert len(server.seen) == 4, "one repair, then no answer"
    assert record.cost == pytest.approx(2 * 0.03)


@CLIENTS
def test_a_refusal_is_no_answer_and_not_repaired(client, server, settings, sheet, tmp_path):
    server.faults.append("refusal")
    assert ask(settings(client), tmp_path, sheet).answer is None
    assert ask(settings(client), tmp_path, sheet).answer is None
    assert len(server.seen) == 1


@CLIENTS
def test_a_server_that_does_not_know_the_form_is_asked_without(client, server, settings, sheet, tmp_path):
    field = {"anthropic": "output_config", "openai": "response_format"}[client]
    server.faults.append((400, {}, f"{field}: extra inputs are not permitted"))
    made = Transport(settings(client), tmp_path)
    assert made.ask(sheet, 16).answer is not None
    assert [field in body for *_, body in server.seen] == [True, False]


def test_the_older_name_of_the_limit(server, settings, sheet, tmp_path):
    server.faults.append((400, {}, "unknown field max_completion_tokens"))
    assert ask(settings(max_tokens=300), tmp_path, sheet).answer is not None
    first, second = (body for *_, body in server.seen)
    assert first["max_completion_tokens"] == second["max_tokens"] == 300
    assert "max_completion_tokens" not in second


@CLIENTS
def test_the_temperature_is_sent_only_where_it_is_given(client, server, settings, sheet, tmp_path):
    ask(settings(client), tmp_path, sheet)
    ask(settings(client, temperature=0.25), tmp_path, sheet)
    assert [body.get("temperature") for *_, body in server.seen] == [None, 0.25]


def test_the_cap_holds_before_a_call(server, settings, sheet, tmp_path):
    with pytest.raises(CapReached, match=r"cap of \$0\.01"):
        ask(settings(max_cost=0.01), tmp_path, sheet)
    assert not server.seen
    with pytest.raises(CapReached, match="cap of 0 requests"):
        ask(settings(max_calls=0), tmp_path, sheet)
    assert not server.seen


def test_the_caps_count_what_earlier_processes_did(server, settings, pictures, tmp_path):
    x, _ = pictures
    sheets = [contact_sheet.draw(x[16 * i : 16 * i + 16], x[:16]) for i in range(1, 40)]
    limits = settings(max_cost=0.3)
    answered = 0
    for sheet in sheets:
        try:
            ask(limits, tmp_path, sheet)  # a new process each time, as far as the judge can tell
        except CapReached:
            break
        answered += 1
    spent = Transport(limits, tmp_path).budget.spent
    assert 0 < answered < 12
    assert spent == pytest.approx(0.03 * answered)
    assert spent <= 0.3
    ask(limits, tmp_path, sheets[0])  # a cached answer costs nothing


def test_a_server_that_counts_no_tokens_is_charged_by_the_estimate(server, settings, sheet, tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.monitor.vision.clients.openai.Reply", lambda text, *_: Reply(text, None, None, False))
    from thalweg.monitor.vision.clients.base import Reply

    assert ask(settings(), tmp_path, sheet).cost > 0.1


def test_a_damaged_record_is_asked_again(server, settings, sheet, tmp_path):
    ask(settings(), tmp_path, sheet)
    (path,) = (tmp_path / "answers").iterdir()
    path.write_text(path.read_text()[:-5])
    ask(settings(), tmp_path, sheet)
    assert len(server.seen) == 2


def test_another_picture_or_model_is_another_question(server, settings, sheet, pictures, tmp_path):
    ask(settings(), tmp_path, sheet)
    ask(settings(model="other"), tmp_path, sheet)
    ask(settings(), tmp_path, contact_sheet.draw(pictures[0][:16], torch.zeros(16, 1, 28, 28)))
    assert len(server.seen) == 3


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://host/", "http://user:secret@host/", "https://host/?key=1"])
def test_an_address_that_is_none(url):
    with pytest.raises(ValidationError):
        VisionSettings(model="m", base_url=url)
