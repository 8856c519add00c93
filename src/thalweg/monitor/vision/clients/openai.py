"""Chat completions of any server that is compatible with OpenAI's, by the official client with a base URL.

Fields that not every server knows are left out once the server names one of them in a 400: the form of the answer
(`response_format`), and `max_completion_tokens`, in place of which the older `max_tokens` is sent.
"""

import base64
from typing import Any, ClassVar

from thalweg.monitor.vision.clients.base import FieldError, Reply, Request, missing_library, our_errors

FORM = ("response_format", "json_schema")


class Client:
    """A client of OpenAI's API, or of a server that speaks it."""

    key_variable: ClassVar[str] = "OPENAI_API_KEY"
    official_url: ClassVar[str] = "https://api.openai.com/v1"

    def __init__(self, *, url: str, key: str, timeout: float):
        try:
            import openai
        except ImportError as error:
            raise missing_library("openai") from error
        self._library = openai
        # No redirects: they would take images to a host that was not named. Retries are those of the transport.
        http = openai.DefaultHttpxClient(follow_redirects=False)
        self._client = openai.OpenAI(api_key=key, base_url=url, timeout=timeout, max_retries=0, http_client=http)
        if url != self.official_url:  # the library takes both from the environment and sends them to any server
            self._client.organization = self._client.project = None
        self._structured, self._tokens = True, "max_completion_tokens"

    def ask(self, request: Request) -> Reply:
        """One chat completion with the images and the question."""
        while True:
            try:
                return self._send(request)
            except FieldError as error:
                if not self._left_out(str(error)):
                    raise error.error from None

    def _left_out(self, message: str) -> bool:
        """Leave out a field that the server does not know; False where it names none."""
        if self._structured and any(word in message for word in FORM):
            self._structured = False
            return True
        if self._tokens in message and self._tokens != "max_tokens":
            self._tokens = "max_tokens"
            return True
        return False

    def _send(self, request: Request) -> Reply:
        more: dict[str, Any] = {self._tokens: request.max_tokens}
        if request.temperature is not None:
            more["temperature"] = request.temperature
        if self._structured:
            form = {"name": "answer", "schema": request.schema, "strict": True}
            more["response_format"] = {"type": "json_schema", "json_schema": form}
        with our_errors(self._library):
            found = self._client.chat.completions.create(model=request.model, messages=_messages(request), **more)
            choice, used = found.choices[0], found.usage
            refused = bool(choice.message.refusal) or choice.finish_reason == "content_filter"
            tokens = (used.prompt_tokens, used.completion_tokens) if used else (None, None)
            return Reply(choice.message.content or "", *tokens, refused)


def _messages(request: Request) -> list[Any]:
    images = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}
        for png in request.images
    ]
    messages: list[Any] = [
        {"role": "system", "content": request.system},
        {"role": "user", "content": [*images, {"type": "text", "text": request.prompt}]},
    ]
    if request.repair is not None:
        answer, remark = request.repair
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": remark}]
    return messages
