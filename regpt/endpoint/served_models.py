"""The models that a server has, each with an engine of its own, found by the names that requests give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from regpt.base.errors import UserError
from regpt.endpoint.engine import Engine
from regpt.interop.open_model import LoadedModel
from regpt.serve.errors import ApiError, ErrorType

MOST_MODELS = 8  # all are in memory


class ServedModels:
    """Engines by the names of their models. The first one answers requests that name no model."""

    def __init__(self, loaded: Sequence[LoadedModel], with_steps: bool = False, half_weights: bool = False) -> None:
        """Start an engine for each model, named with its step where asked. Raises UserError for one given twice."""
        names = names_of(loaded, with_steps)
        self.engines = {
            name: Engine(model, half_weights=half_weights) for name, model in zip(names, loaded, strict=True)
        }

    def __iter__(self) -> Iterator[tuple[str, Engine]]:
        return iter(self.engines.items())

    @property
    def names(self) -> list[str]:
        return list(self.engines)

    def of_request(self, body: Any) -> tuple[str, Engine]:
        """Return the model of a request and its name. Raises ApiError for a name that no model has."""
        asked = body.get("model") if isinstance(body, Mapping) else None
        name = self.names[0] if asked is None else asked
        if not isinstance(name, str) or name not in self.engines:
            known = ", ".join(f"'{one}'" for one in self.names)
            text = f"there is no model '{str(name)[:80]}' here; this server has {known}"
            raise ApiError(404, ErrorType.INVALID_REQUEST, "model_not_found", text, "model")
        return name, self.engines[name]

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()


def check_count(models: Sequence[str]) -> None:
    """Raise UserError if more models are asked for than a server holds."""
    if len(models) > MOST_MODELS:
        raise UserError(
            f"{len(models)} models are given; a server holds at most {MOST_MODELS}, as all are in memory",
            "leave some out, or start several servers with different --port",
        )


def short_name(loaded: LoadedModel) -> str:
    """Return the name of a model's run or directory."""
    return loaded.run.resolve().name if loaded.run else loaded.name


def name_with_step(loaded: LoadedModel) -> str:
    """Return the name of a model that tells it from other checkpoints of its run."""
    step = f"-step-{loaded.step}" if loaded.run and loaded.step is not None else ""
    return short_name(loaded) + step + ("-averaged" if loaded.averaged else "")


def names_of(models: Sequence[LoadedModel], with_steps: bool = False) -> list[str]:
    """Return the names of models in requests: the shortest ones that differ. Raises UserError if two are the same."""
    kinds: list[Callable[[LoadedModel], str]] = [short_name, name_with_step, lambda loaded: loaded.exact_name]
    for name_of in kinds[with_steps:]:
        names = [name_of(loaded) for loaded in models]
        if len(set(names)) == len(names):
            return names
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f"the model {twice} is given twice", "give each model once")
