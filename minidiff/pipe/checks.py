"""The door of every technique: what a caller may hand in, and one sentence for everything else.

    @door
    def sdedit(pipe: Pipe, image: Tensor, prompt: str, *, mask=None, strength=0.6, ...) -> Tensor:

Behind the door a picture is float32 (b 3 H W) in [-1, 1] without gradients, a mask (1 or b, 1, H,
W) of 0 and 1, a prompt list has one entry a picture, numbers are finite and of their kind. In front
of it a picture may be a path, a PIL picture, or uint8 from numpy or torch as well. Arguments are
known by their names, which mean the same in every technique; a `scale` that is None becomes the
model's own.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

from minidiff.io import as_mask, as_pictures

if TYPE_CHECKING:
    from minidiff.pipe.pipe import Pipe

Given = ParamSpec("Given")  # what a technique takes, and what it returns
Result = TypeVar("Result")

PICTURES = ("image", "reference", "outside", "examples", "changed")
PROMPTS = ("prompt", "source", "target", "other", "negative", "instruction")
SCALES = ("scale", "source_scale")  # None: the guidance of the model
AT_LEAST_ONE = (
    "batch",
    "pictures",
    "samples",
    "train_steps",
    "repeats",
)  # other counts may be 0, or have their own limits


def check_steps(steps: Any) -> None:
    """A whole number of steps; how many a schedule has room for is its own to say."""
    if isinstance(steps, bool) or not isinstance(steps, Integral):
        raise ValueError(f"steps={steps!r}: a whole number was expected, such as 50")


def check_seed(seed: Any) -> None:
    """A whole number that random generators take, with room for a batch."""
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**62:
        raise ValueError(f"seed={seed!r}: a whole number from 0 to 2**62 was expected")


def check_scale(scale: Any, name: str = "scale") -> None:
    """Guidance: a finite number of at least 0."""
    check_number(name, scale)
    if scale < 0:
        raise ValueError(
            f"{name}={scale} is negative; 1 is no guidance, 7.5 usual; to avoid something make it "
            "the negative prompt"
        )


def check_number(name: str, value: Any) -> None:
    """A finite number."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: a finite number was expected")


def check_share(name: str, value: Any) -> None:
    """A number from 0 to 1."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: a share was expected, 0 to 1")


def check_strength(name: str, value: Any) -> None:
    """How much of something: a finite number of at least 0."""
    check_number(name, value)
    if value < 0:
        raise ValueError(f"{name}={value}: a number of at least 0 was expected")


def prompts_of(prompts: Any, name: str = "prompts") -> list[str]:
    """One prompt or several as a list; ValueError for none, or for what is no text."""
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, (list, tuple)) or not all(isinstance(p, str) for p in texts):
        raise ValueError(f"{name}={prompts!r}: a text, or a list of texts, was expected")
    if not texts:
        raise ValueError(f'{name} is an empty list; "" is the empty prompt')
    return list(texts)


def prompt_each(prompts: Any, b: int, name: str = "prompts") -> list[str]:
    """One prompt a picture: b of them, or one for all."""
    texts = prompts_of(prompts, name)
    if len(texts) not in (1, b):
        raise ValueError(
            f"{len(texts)} texts as {name} for {b} picture(s): give one each, or one for all"
        )
    return texts * b if len(texts) == 1 else texts


def one_by_one(
    technique: Callable[..., Tensor],
    pipe: "Pipe",
    image: Tensor,
    source: str | list[str],
    target: str | list[str],
    *,
    seed: int,
    **options: Any,
) -> Tensor:
    """A technique that learns from what it is given, on every picture by itself, so that no result
    depends on its neighbours: picture i with its own prompts and seed + i.
    """
    sources = prompt_each(source, len(image), "source")
    targets = prompt_each(target, len(image), "target")
    out = [
        technique(pipe, image[i : i + 1], sources[i], targets[i], seed=seed + i, **options)
        for i in range(len(image))
    ]
    return torch.cat(out)


def needs_text(pipe: "Pipe", technique: str) -> None:
    """For what looks at words one by one."""
    if pipe.text is None:
        raise ValueError(
            f"{pipe.name or 'this model'} reads no text; {technique} needs a model that does"
        )


def door(technique: Callable[Given, Result]) -> Callable[Given, Result]:
    """A technique that checks what it is given, by the names of its parameters, before any work."""
    parameters = inspect.signature(technique).parameters

    @wraps(technique)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        bound = inspect.signature(technique).bind(*args, **kwargs)
        given = bound.arguments
        pipe = given["pipe"]
        for name in given.keys() & parameters.keys():
            if name != "pipe" and given[name] is None and not may_be_none(parameters[name]):
                raise ValueError(f"{name}=None: {technique.__name__} needs a value for it")
        for name in PICTURES:
            if given.get(name) is not None and name in parameters:
                given[name] = as_pictures(given[name], name)
        image = given.get("image")
        outside = given.get("outside")
        if image is not None and outside is not None and outside.shape != image.shape:
            raise ValueError(
                f"outside has shape {tuple(outside.shape)}, the picture {tuple(image.shape)}: "
                "expected the same"
            )
        for name in SCALES:
            if name in parameters and parameters[name].default is None:
                if given.get(name) is None:
                    given[name] = pipe.scale
        if given.get("mask") is not None:
            given["mask"] = as_mask(given["mask"])
        prompts = [name for name in PROMPTS if given.get(name) is not None]
        texts = {name: prompts_of(given[name], name) for name in prompts}
        b = len(image) if image is not None else max(map(len, texts.values()), default=1)
        for name, listed in texts.items():
            prompt_each(listed, b, name)
        check_numbers(given, parameters)
        check_words(given)
        if isinstance(given.get("seed"), Integral):
            given["seed"] = int(given["seed"])  # numpy's whole numbers too
        if isinstance(image, Tensor):
            pipe.latent_size(*image.shape[2:])
        return technique(*bound.args, **bound.kwargs)

    checked.has_door = True  # type: ignore[attr-defined]
    return checked


def check_numbers(given: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> None:
    """Steps, seeds, and every argument that is a number by its default or its annotation."""
    for name, value in given.items():
        if name not in parameters or (value is None and may_be_none(parameters[name])):
            continue
        default = parameters[name].default
        kinds = get_args(parameters[name].annotation)
        if name == "steps":
            check_steps(value)
        elif name == "seed":
            check_seed(value)
        elif name in SCALES:
            check_scale(value, name)
        elif isinstance(default, tuple) and default and isinstance(default[0], float):
            check_pair(name, value)
        elif isinstance(default, bool):
            continue
        elif isinstance(default, Integral):
            check_count(name, value, least=1 if name in AT_LEAST_ONE else None)
        elif isinstance(default, Real) or float in kinds:
            check_number(name, value)


def check_pair(name: str, value: Any) -> None:
    """Two finite numbers."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name}={value!r}: two numbers were expected")
    for number in value:
        check_number(name, number)


def check_words(given: Mapping[str, Any]) -> None:
    """`weights` {word: factor}, and `blend` (word of the source, word of the target), or a list
    with such a pair or None for each picture.
    """
    weights = given.get("weights")
    if weights is not None and not isinstance(weights, str):
        if not isinstance(weights, Mapping):
            raise ValueError(f'weights={weights!r}: {{word: factor}} was expected, as {{"red": 2}}')
        for word, factor in weights.items():
            check_number(f"weights[{word!r}]", factor)
    blend = given.get("blend")
    if blend is None:
        return
    each = blend if isinstance(blend, list) and not is_pair(blend) else [blend]
    if not each or not all(words is None or is_pair(words) for words in each):
        raise ValueError(f"blend={blend!r}: a word of the source and one of the target")


def is_pair(words: Any) -> bool:
    """Two texts."""
    two = isinstance(words, (tuple, list)) and len(words) == 2
    return two and all(isinstance(word, str) for word in words)


def may_be_none(parameter: Parameter) -> bool:
    """Is None among the values that a parameter takes?"""
    return parameter.default is None or type(None) in get_args(parameter.annotation)


def check_count(name: str, value: Any, least: int | None = None) -> None:
    """A whole number, and of at least `least` if that is given."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole:
        raise ValueError(f"{name}={value!r}: a whole number was expected")
    if least is not None and value < least:
        raise ValueError(f"{name}={value!r}: at least {least} was expected")
