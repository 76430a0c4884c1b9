"""The application: the page, the API, and the errors."""

import hmac
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from regpt import __version__
from regpt.serve.access import SESSION_PATH, Access, AccessControl, cookie_name, server_port
from regpt.serve.errors import ApiError, ErrorType, invalid_request, not_found
from regpt.serve.run_routes import json_response, run_routes

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def create_app(root: Path, access: Access, routers: tuple[APIRouter, ...] = ()) -> Any:
    """Return the ASGI application for the runs in `root`. `routers` are those of the models."""
    app = FastAPI(title="regpt", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    for router in (run_routes(root), page_routes(), session_routes(access), *(routers or (routes_without_model(),))):
        app.include_router(router)
    app.add_exception_handler(ApiError, lambda request, error: error_response(error))
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(RequestValidationError, answer_invalid_request)
    app.add_exception_handler(Exception, answer_own_fault)
    return AccessControl(app, access)


def page_routes() -> APIRouter:
    """Return the routes of the page. Its files are in memory, so that no request names a path."""
    router = APIRouter()
    folder = resources.files("regpt.serve").joinpath("static")
    files = {file.name: file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in KINDS}

    @router.get("/")
    def index() -> Response:
        return Response(files["index.html"], media_type="text/html; charset=utf-8")

    @router.get("/static/{name}")
    def asset(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=f"{KINDS[Path(name).suffix]}; charset=utf-8")

    @router.get("/health")
    def health() -> Response:
        return json_response({"status": "ok"})

    return router


def routes_without_model() -> APIRouter:
    """Return the routes of a server that has no model: an empty list, and requests refused with the remedy."""
    router = APIRouter()

    @router.get("/v1/models")
    def list_models() -> Response:
        return json_response({"object": "list", "data": []})

    @router.post("/v1/completions")
    @router.post("/v1/chat/completions")
    def refuse() -> Response:
        raise not_found("no model is served; start the server with one: regpt serve MODEL", "model_not_found")

    return router


def session_routes(access: Access) -> APIRouter:
    """Return the routes by which a browser gives the token once and receives a cookie."""
    router = APIRouter()

    @router.get(SESSION_PATH)
    def is_token_needed() -> Response:
        return json_response({"needs_token": bool(access.token)})

    @router.post(SESSION_PATH)
    async def start_session(request: Request) -> Response:
        given = (await request.body()).decode("utf-8", errors="replace")
        if not access.token or not hmac.compare_digest(given.strip().encode(), access.token.encode()):
            raise ApiError(401, ErrorType.AUTHENTICATION, "invalid_token", "this is not the server's token")
        response = json_response({"status": "ok"})
        response.set_cookie(
            cookie_name(server_port(request.scope)), access.session, httponly=True, samesite="strict", path="/"
        )
        return response

    return router


def error_response(error: ApiError) -> Response:
    headers = {} if error.retry_seconds is None else {"retry-after": str(error.retry_seconds)}
    return Response(error.body(), error.status, headers, media_type="application/json")


def answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.scope['path']}"
    if error.status_code == 405:
        text, code = f"{what} is not possible here", "method_not_allowed"
    else:
        text, code = f"there is no {what}", "not_found"
    kind = ErrorType.NOT_FOUND if error.status_code == 404 else ErrorType.INVALID_REQUEST
    response = error_response(ApiError(error.status_code, kind, code, text))
    response.headers.update(error.headers or {})  # such as the methods that are allowed
    return response


def answer_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return error_response(invalid_request(first["msg"], str(first["loc"][-1])))


def answer_own_fault(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, ErrorType.SERVER, "internal_error", "the server failed; its log says why"))
