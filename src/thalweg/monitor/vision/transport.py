"""How a question becomes an answer: cache, spend cap, log, retries, one repair of an answer that is not valid.

It was tried against a local server that speaks both protocols (tests/monitor), never against a real vision model.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thalweg.core.errors import UserError
from thalweg.monitor.vision.budget import Budget
from thalweg.monitor.vision.cache import AnswerCache, Record, image_hash, sha256
from thalweg.monitor.vision.clients.base import Rejected, Reply, Request, Unavailable, VisionClient, find_client
from thalweg.monitor.vision.questions import PROMPT_VERSION, REPAIR, SYSTEM, Answer, answer_schema, prompt, read_answer
from thalweg.monitor.vision.settings import NO_KEY, VisionSettings

log = logging.getLogger("thalweg")


class Transport:
    """Asks one model about sheets.

    Args:
        settings: The model, and what may be sent and spent.
        folder: The cache, of answers and of the list of sendings.

    Raises:
        UserError: `send_images` is not on, the key or the library is missing.
    """

    def __init__(self, settings: VisionSettings, folder: Path):
        if not settings.send_images:
            hint = "turn it on, --send-images on the command line, to send contact sheets to the model's server"
            raise UserError(
                "must be True before an image leaves this process", argument="send_images", value=False, hint=hint
            )
        self.settings = settings
        self._key = settings.key()
        made = find_client(settings.client)
        self._client: VisionClient = made(url=settings.url(), key=self._key, timeout=settings.timeout)
        self.cache = AnswerCache(folder / "answers")
        self.budget = Budget(settings, folder)

    def ask(self, sheet: bytes, tiles: int) -> Record:
        """The answer about a sheet of so many tiles a panel, from the cache or the model.

        A refusal and an answer that stays invalid are kept too, as records without an answer.

        Raises:
            CapReached: The spend cap is reached.
            Unavailable, Rejected: The server does not answer, or does not take the request.
        """
        request = self._request(sheet, tiles)
        question = self._question(request)
        if (known := self.cache.read(question)) is not None:
            return known
        replies = [self._send(request)]
        answer, problem = _read(replies[0])
        if answer is None and not replies[0].refused:  # one repair
            remark = REPAIR.format(problem=problem)
            replies.append(self._send(request._replace(repair=(replies[0].text or "(nothing)", remark))))
            answer, problem = _read(replies[1])
        tokens = (sum(r.input_tokens or 0 for r in replies), sum(r.output_tokens or 0 for r in replies))
        record = Record(
            question=question,
            answer=answer,
            problem=problem,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cost=self.budget.cost(*tokens),
        )
        self.cache.write(record)
        return record

    def _request(self, sheet: bytes, tiles: int) -> Request:
        s = self.settings
        return Request(s.model, SYSTEM, prompt(tiles), (sheet,), answer_schema(), s.temperature, s.max_tokens)

    def _question(self, request: Request) -> dict[str, Any]:
        """All that makes a question, which addresses its answer."""
        return {
            "client": self.settings.client,
            "host": self.settings.host(),
            "model": request.model,
            "prompt_version": PROMPT_VERSION,
            "prompt": sha256(f"{request.system}\n{request.prompt}".encode()),
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "images": [image_hash(image) for image in request.images],
        }

    def _send(self, request: Request) -> Reply:
        """The reply, with the retries that the settings allow; tokens are estimated where the server counts none."""
        s, waited = self.settings, 0
        while True:
            self.budget.require(request)
            size = self.budget.note_sending(request)
            log.info("sending %d image (%d bytes) to %s for %s", len(request.images), size, s.host(), s.model)
            try:
                reply = _within(2 * s.timeout, lambda: self._client.ask(request))
            except Unavailable as error:
                if error.perhaps_billed:
                    self.budget.note_cost(*self.budget.estimate(request))
                wait = s.backoff * 2**waited if error.retry_after is None else error.retry_after
                if waited >= s.max_retries or wait > s.max_wait:
                    raise
                waited += 1
                log.info("%s; asking again in %.1f s", error, wait)
                time.sleep(wait)
            except Rejected as error:
                raise Rejected(self._hidden(str(error))) from None
            else:
                likely = self.budget.estimate(request)
                tokens = [_count(found, guess) for found, guess in zip(reply[1:3], likely, strict=True)]
                self.budget.note_cost(*tokens)
                return Reply(self._hidden(reply.text), *tokens, refused=reply.refused)

    def _hidden(self, text: str) -> str:
        """The text without the key, which a server could quote."""
        return text if self._key == NO_KEY else text.replace(self._key, "[key]")


def _within(seconds: float, call: Callable[[], Reply]) -> Reply:
    """The result of a call, or `Unavailable` after that time: a client's time-out counts anew from each byte received.

    The thread of a call that is given up ends with its connection.
    """
    done: queue.Queue[Reply | BaseException] = queue.Queue()

    def work() -> None:
        try:
            done.put(call())
        except BaseException as error:  # raised in the caller's thread
            done.put(error)

    threading.Thread(target=work, daemon=True, name="thalweg-vision").start()
    try:
        found = done.get(timeout=seconds)
    except queue.Empty:
        raise Unavailable("the server did not answer in time", perhaps_billed=True) from None
    if isinstance(found, BaseException):
        raise found
    return found


def _read(reply: Reply) -> tuple[Answer | None, str]:
    return (None, "the model declines to answer") if reply.refused else read_answer(reply.text)


def _count(found: Any, likely: int) -> int:
    """A count of tokens, or the estimate where the server gives none."""
    return found if type(found) is int and found >= 0 else likely
