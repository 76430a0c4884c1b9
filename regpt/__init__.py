"""regpt trains GPT-2 (124M) from scratch and writes a report that can be verified.

The functions of the library load on first use, so that `import regpt` takes no time:

    import regpt

    run = regpt.train(regpt.load_recipe("demo-modern", ["run.max_steps=20"]))
    print(run.validation_loss)

docs/library.md shows all of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regpt.library import (
        Run,
        UserError,
        compare,
        cooldown,
        evaluate,
        generate,
        load_model,
        load_recipe,
        open_run,
        prepare,
        report,
        resume,
        train,
    )

__version__ = "0.3.0"
__all__ = [
    "Run",
    "UserError",
    "__version__",
    "compare",
    "cooldown",
    "evaluate",
    "generate",
    "load_model",
    "load_recipe",
    "open_run",
    "prepare",
    "report",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a function of the library on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'regpt' has no attribute '{name}'")
    from regpt import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted(__all__)
