"""minidiff: image diffusion and the editing techniques built on it, small enough to read and tested
against known answers.

    import minidiff
    pipe = minidiff.load("tiny")
    image = pipe.generate("a red circle on a blue background", seed=0)  # (1, 3, 64, 64) in [-1, 1]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minidiff.weights.store import build, load, load_clip

__version__ = "0.7.0"
__all__ = ["__version__", "build", "load", "load_clip"]


def __getattr__(name: str) -> Any:
    # late, so that `import minidiff.core...` does not import every network
    if name in __all__:
        from minidiff.weights import store

        return getattr(store, name)
    raise AttributeError(f"module 'minidiff' has no attribute {name!r}")
