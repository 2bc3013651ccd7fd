"""A page in the browser over a saved index: neighbours, a map, two encoders side by side. ``explore`` starts it.

Importing this package imports neither FastAPI nor PyTorch; :func:`explore` and :func:`build_app` do.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrastive.retrieval.explorer.app import build_app
    from contrastive.retrieval.explorer.serve import explore

__all__ = ["build_app", "explore"]

_MODULES = {"build_app": "app", "explore": "serve"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
