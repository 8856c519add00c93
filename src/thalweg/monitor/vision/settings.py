"""Settings of the vision judge: which model is asked, what may leave the machine, and what may be spent."""

import os
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from thalweg.core.errors import UserError, suggestion
from thalweg.monitor.vision.clients.base import find_client

NO_KEY = "none"  # what a server without keys is sent


class VisionSettings(BaseModel):
    """How a vision-language model is asked.

    Args:
        client: The protocol: "anthropic", or "openai" for any server that is compatible with OpenAI's.
        model: The model's name, as the server knows it. There is no default: names go out of date.
        base_url: The server's address, such as http://127.0.0.1:8080/v1. None: the client's own.
        send_images: Whether images may leave this process. Nothing is sent, to no server, unless it is True.
        key_variable: The environment variable with the key. None: ANTHROPIC_API_KEY or OPENAI_API_KEY for the
            client's own server; a server at another `base_url` is sent no key unless this names it.
        temperature: Of the answers, in [0, 2]. None: the server's own, since some models refuse another.
        max_tokens: The most tokens of one answer.
        timeout: Seconds for one answer.
        max_retries: How often a busy server is asked again.
        backoff: Seconds before the first retry; they double each time. A server's Retry-After goes before.
        max_wait: The longest wait in seconds; a server that wants more is given up.
        max_cost: Spend cap in US dollars, for all that the judge's cache folder holds.
        max_calls: The most requests, for the same.
        price_input, price_output: US dollars for a million tokens. The defaults are a guess on
            the high side; give those of your model, and 0 for a server of your own.
        tiles: Samples, and real examples, in one sheet.
        sheets: Independent sheets of samples beside real data; each is asked in both orders.
        seed: Of the rows that are drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    client: str = "anthropic"
    model: str = Field(min_length=1)
    base_url: str | None = None
    send_images: bool = False
    key_variable: str | None = Field(None, pattern=r"^[A-Z_][A-Z0-9_]{0,60}$")
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int = Field(1500, ge=200)
    timeout: float = Field(60.0, gt=0)
    max_retries: int = Field(4, ge=0)
    backoff: float = Field(1.0, ge=0)
    max_wait: float = Field(60.0, ge=0)
    max_cost: float = Field(1.0, ge=0)
    max_calls: int = Field(200, ge=0)
    price_input: float = Field(10.0, ge=0)
    price_output: float = Field(50.0, ge=0)
    tiles: int = Field(36, ge=4, le=100)
    sheets: int = Field(2, ge=1)
    seed: int = Field(0, ge=0)

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://none")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("must be an address such as http://127.0.0.1:8080/v1, without a user or a query")
        return url

    @classmethod
    def of(cls, **given: Any) -> Self:
        """The settings that are given, those that are None left out; `UserError` for a value that cannot be."""
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "missing":
                hint = "name a model that the server has and that takes images"
                raise UserError("must be given", argument=name, hint=hint) from None
            if first["type"] == "extra_forbidden":  # its value may be a key, typed in the wrong place
                raise UserError("no such key", argument=name, hint=suggestion(name, cls.model_fields)) from None
            if name == "key_variable":
                text = "must be the name of an environment variable, in capitals, and not the key itself"
                raise UserError(text, argument=name) from None
            condition = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
            raise UserError(condition, argument=name, value=first["input"]) from None

    def url(self) -> str:
        """The server's address."""
        return self.base_url or find_client(self.client).official_url

    def host(self) -> str:
        """The name of the machine that images are sent to."""
        return urlsplit(self.url()).hostname or ""

    def variable(self) -> str | None:
        """The environment variable with the key; None where the server is sent none."""
        if self.base_url is None:
            return self.key_variable or find_client(self.client).key_variable
        return self.key_variable

    def has_key(self) -> bool:
        """Whether the server can be asked: its key is in the environment, or it is sent none."""
        variable = self.variable()
        return variable is None or bool(os.environ.get(variable, "").strip())

    def key(self) -> str:
        """The key from the environment; UserError, which names the variable alone, where there is none."""
        variable = self.variable()
        if variable is None:
            return NO_KEY
        if found := os.environ.get(variable, "").strip():
            return found
        raise UserError(
            "must hold the key of the model's server", argument=variable, hint="export it, or take --judge statistical"
        )
