"""Anthropic's messages, by the official client.

The answer is wanted in the form of the schema (`output_config`); a model that does not know the field is asked without.
"""

import base64
from typing import Any, ClassVar

from thalweg.monitor.vision.clients.base import FieldError, Reply, Request, missing_library, our_errors

FORM = ("output_config", "output_format", "json_schema")


class Client:
    """A client of the Anthropic API."""

    key_variable: ClassVar[str] = "ANTHROPIC_API_KEY"
    official_url: ClassVar[str] = "https://api.anthropic.com"

    def __init__(self, *, url: str, key: str, timeout: float):
        try:
            import anthropic
        except ImportError as error:
            raise missing_library("anthropic") from error
        self._library = anthropic
        # No redirects: they would take images to a host that was not named. Retries are those of the transport.
        http = anthropic.DefaultHttpxClient(follow_redirects=False)
        self._client = anthropic.Anthropic(
            api_key=key, base_url=url, timeout=timeout, max_retries=0, http_client=http, open_telemetry=False
        )
        self._structured = True

    def ask(self, request: Request) -> Reply:
        """One message with the images and the question."""
        try:
            return self._send(request)
        except FieldError as error:
            if not self._structured or not any(word in str(error) for word in FORM):
                raise error.error from None
        self._structured = False
        try:
            return self._send(request)
        except FieldError as error:
            raise error.error from None

    def _send(self, request: Request) -> Reply:
        more: dict[str, Any] = {}
        if self._structured:
            more["output_config"] = {"format": {"type": "json_schema", "schema": request.schema}}
        if request.temperature is not None:  # of the older models; the library has no argument for it
            more["extra_body"] = {"temperature": request.temperature}
        with our_errors(self._library):
            message = self._client.messages.create(
                model=request.model,
                system=request.system,
                messages=_messages(request),
                max_tokens=request.max_tokens,
                **more,
            )
            text = "".join(block.text for block in message.content if block.type == "text")
            used = message.usage
            tokens = used.input_tokens + (used.cache_creation_input_tokens or 0) + (used.cache_read_input_tokens or 0)
            return Reply(text, tokens, used.output_tokens, message.stop_reason == "refusal")


def _messages(request: Request) -> list[Any]:
    images = [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()},
        }
        for png in request.images
    ]
    messages: list[Any] = [{"role": "user", "content": [*images, {"type": "text", "text": request.prompt}]}]
    if request.repair is not None:
        answer, remark = request.repair
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": remark}]
    return messages
