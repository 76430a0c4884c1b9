"""Errors of the server in one JSON form, which is OpenAI's."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class ErrorType(StrEnum):
    """The kinds of error that the OpenAI API distinguishes."""

    INVALID_REQUEST = "invalid_request_error"
    AUTHENTICATION = "authentication_error"
    PERMISSION = "permission_error"
    NOT_FOUND = "not_found_error"
    RATE_LIMIT = "rate_limit_error"
    SERVER = "server_error"


@dataclass
class ApiError(Exception):
    """A request that is refused. `message` is for people, `code` for programs."""

    status: int
    type: ErrorType
    code: str
    message: str
    param: str | None = None  # of the request, that is wrong
    retry_seconds: int | None = None  # after which the client may try again

    def body(self) -> bytes:
        """Return the JSON that the client receives."""
        fields: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": fields}, ensure_ascii=False).encode()


def not_found(message: str, code: str = "not_found") -> ApiError:
    return ApiError(404, ErrorType.NOT_FOUND, code, message)


def invalid_request(message: str, param: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, ErrorType.INVALID_REQUEST, code, message, param)
