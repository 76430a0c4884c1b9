"""The routes of the OpenAI API: the models' names, completions and chat, whole or streamed."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from regpt.endpoint.answer_forms import AnswerForm, ChatForm, TextForm
from regpt.endpoint.chat_request import parse_chat
from regpt.endpoint.completion import Completions
from regpt.endpoint.completion_request import CompletionRequest, parse_completion
from regpt.endpoint.engine import Engine, Job, JobEnded, JobEvent
from regpt.endpoint.served_models import ServedModels
from regpt.interop.open_model import LoadedModel
from regpt.serve.errors import ApiError, ErrorType, invalid_request
from regpt.serve.run_json import to_bytes
from regpt.tokenization.chat_tokens import ChatTokenizer

LOOK_SECONDS = 0.5  # between two looks whether the client of a whole response is still there


def model_routes(models: ServedModels) -> APIRouter:
    """Return the routes for the models of a server."""
    router = APIRouter()
    cards = {name: model_card(name, engine.loaded) for name, engine in models}

    @router.get("/v1/models")
    def list_models() -> Response:
        return Response(to_bytes({"object": "list", "data": list(cards.values())}), media_type="application/json")

    @router.get("/v1/models/{model:path}")
    def one_model(model: str) -> Response:
        name, _ = models.of_request({"model": model})
        return Response(to_bytes(cards[name]), media_type="application/json")

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await json_of(request)
        name, engine = models.of_request(body)
        asked = await asyncio.to_thread(parse_completion, body, engine.loaded)  # a long text takes seconds to encode
        return await answer(request, name, engine, asked, TextForm(engine.loaded.tokenizer))

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await json_of(request)
        name, engine = models.of_request(body)
        asked = await asyncio.to_thread(parse_chat, body, engine.loaded, name)
        return await answer(request, name, engine, asked, ChatForm(engine.loaded.tokenizer))

    return router


def model_card(name: str, loaded: LoadedModel) -> dict[str, Any]:
    """Return what a list of models tells of one. The last five fields are not OpenAI's."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "regpt",
        "max_model_len": loaded.model.recipe.block_size,  # tokens, as vLLM names it
        "chat": isinstance(loaded.tokenizer, ChatTokenizer),
        "run": loaded.run.resolve().name if loaded.run else None,
        "step": loaded.step,
        "averaged": loaded.averaged,
    }


async def json_of(request: Request) -> Any:
    """Return the JSON of a request's body, whatever its content type. Raises ApiError."""
    try:
        return json.loads(await request.body(), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid_request(f"the body is not JSON ({str(error)[:80]})", "body", "invalid_json") from None


def refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


class JobStream(StreamingResponse):
    """Server-sent events of a job, whose work ends with the response, even where it never began to send."""

    def __init__(self, job: Job, parts: AsyncIterator[bytes]) -> None:
        super().__init__(parts, media_type="text/event-stream")
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.left.set()


async def answer(request: Request, name: str, engine: Engine, asked: CompletionRequest, form: AnswerForm) -> Response:
    """Return the answer to a checked request, whole or as a stream."""
    job, events = submit(engine, asked)
    made = Completions(asked, engine.loaded.tokenizer)
    head = {"id": f"{form.prefix}{secrets.token_hex(12)}", "created": int(time.time()), "model": name}
    if asked.stream:
        head["object"] = form.part_name
        return JobStream(job, streamed(job, events, made, form, head))
    head["object"] = form.name
    return await whole(request, job, events, made, form, head)


def submit(engine: Engine, asked: CompletionRequest) -> tuple[Job, "asyncio.Queue[JobEvent]"]:
    """Hand a request to the engine; return its job and the queue of its events."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[JobEvent]()

    def emit(event: JobEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(events.put_nowait, event)

    job = Job(
        prompts=asked.prompts,
        n=asked.n,
        new_tokens=asked.new_tokens,
        ends=asked.ends,
        sampling=asked.sampling,
        alternatives=asked.alternatives,
        scores_prompts=asked.echo and asked.alternatives is not None,
        emit=emit,
    )
    engine.submit(job)
    return job, events


async def whole(
    request: Request,
    job: Job,
    events: "asyncio.Queue[JobEvent]",
    made: Completions,
    form: AnswerForm,
    head: dict[str, Any],
) -> Response:
    """Wait for all completions, and stop the engine's work on them if the client leaves."""
    event: JobEvent | None = None
    looked_at = time.monotonic()
    try:
        while not isinstance(event, JobEnded):
            if time.monotonic() - looked_at > LOOK_SECONDS:
                looked_at = time.monotonic()
                if await request.is_disconnected():
                    break
            try:
                event = await asyncio.wait_for(events.get(), LOOK_SECONDS)
            except TimeoutError:
                continue
            if isinstance(event, JobEnded) and event.failed:
                raise server_failed()
            for row in made.add(event):
                if row.finish_reason is not None:
                    job.ended_rows.add(row.index)
    finally:
        job.left.set()
    found = {**head, "choices": [form.choice(row) for row in made.rows], "usage": made.usage}
    return Response(to_bytes(found), media_type="application/json")


async def streamed(
    job: Job, events: "asyncio.Queue[JobEvent]", made: Completions, form: AnswerForm, head: dict[str, Any]
) -> AsyncIterator[bytes]:
    """Yield server-sent events."""
    event: JobEvent | None = None
    if made.request.stream_usage:
        head = {**head, "usage": None}
    for row in made.rows:
        for part in form.first_parts(row):
            yield sent({**head, "choices": [part]})
    while not isinstance(event, JobEnded):
        event = await events.get()
        if isinstance(event, JobEnded) and event.failed:
            yield b"data: " + server_failed().body() + b"\n\n"
            return
        for row in made.add(event):
            if row.finish_reason is not None:
                job.ended_rows.add(row.index)
            for part in form.parts(row):
                yield sent({**head, "choices": [part]})
    if made.request.stream_usage:
        yield sent({**head, "choices": [], "usage": made.usage})
    yield b"data: [DONE]\n\n"


def server_failed() -> ApiError:
    return ApiError(500, ErrorType.SERVER, "internal_error", "the server failed; its log says why")


def sent(value: Any) -> bytes:
    return b"data: " + to_bytes(value) + b"\n\n"
