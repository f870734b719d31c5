"""A pickle is a program for a stack machine; this is
that machine without the instructions that do harm.

Push a number, make a tuple, look up `os` `system`, call it: Python's unpickler obeys, and so a
checkpoint can own a computer. Here a name like `os.system` becomes a `Global`, a label which is
never imported, and a call looks it up among the few things that a file of weights needs (make a
tensor of a storage, an OrderedDict, a set). All else becomes an `Inert` object that does nothing
and remembers its name. So genuine training checkpoints full of foreign classes can be read, and
hostile ones as well: no instruction touches anything but the lists and dictionaries that the
program itself made.

    EMPTY_DICT, 'w', GLOBAL torch._utils _rebuild_tensor_v2, (('storage', GLOBAL torch FloatStorage,
    '0', 'cpu', 6)
    BINPERSID, 0, (2, 3), (3, 1)), REDUCE, SETITEM, STOP            ->      {'w': tensor(storage
    '0', 0, (2, 3), (3, 1))}

Sums are bounded, too: Python's own unpickler writes gigabytes for twenty bytes that say "remember
this as number 4 billion", and torch's guarded one (`weights_only=True`) calls `bytearray(10 ** 12)`
when asked. Here every instruction and every copied item is counted, and after `STEPS` of them the
file is refused.

Source: the table of instructions in Python's `pickletools`; torch/_utils.py for the functions by
which torch rebuilds. Try: `python -m pickletools data.pkl` on what you find in an unzipped .ckpt.
"""

import io
import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

STEPS = 400_000  # instructions we agree to follow; a full Stable Diffusion checkpoint takes 60,000
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class Global:
    """The name of a class or function, e.g. "os.system". Only a name."""

    name: str


@dataclass(eq=False)
class Inert:
    """What a call of anything unknown makes: the name
    that was called and the attributes it was given.
    """

    name: str
    state: object = None


class Parameters(dict):
    """What stands for torch's ParameterDict: its attributes are its items."""


@dataclass(frozen=True)
class Storage:
    """`numel` numbers, beginning `start` numbers into the data called `key`."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0


class Machine:
    """`tensor(storage, offset, size, stride, dtype=None)`
    decides what stands for a tensor in the object that is made.
    """

    def __init__(self, tensor: Callable = lambda *args: None):
        self.tensor = tensor
        self.left = STEPS
        self.storages = {}

    def run(self, stream: io.BytesIO) -> object:
        """The object one program leaves behind (ValueError and
        its like: no pickle); the stream then stands after it.
        """
        self.stack = []
        self.marks = []
        self.memo = {}
        for op, arg, _ in pickletools.genops(stream):
            self.spend(1)
            if op.name == "STOP":
                return self.stack.pop()
            if op.name not in OPS:
                raise ValueError(f"its pickle uses {op.name}, which no file of weights needs")
            OPS[op.name](self, arg)

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise ValueError(
                f"its pickle takes more than {STEPS:,} steps: no weights, or made to exhaust the "
                "memory"
            )

    # ---- the stack -------------------------------------------------------------------------------

    def push(self, item: object) -> None:
        self.stack.append(item)

    def take(self, n: int) -> list:
        """The last n items, in the order in which they came."""
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def since_mark(self) -> list:
        return self.take(n) if (n := len(self.stack) - self.marks.pop()) > 0 else []

    # ---- filling the container on top of the stack; what is none (an Inert subclass of dict, say)
    # stays empty

    def fill(self, pairs: Iterable) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update((self.key(k), v) for k, v in pairs)

    def extend(self, items: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif isinstance(self.stack[-1], set):
            self.stack[-1].update(map(self.key, items))

    def key(self, key: object) -> object:
        """Keys that cost nothing to hash. A tuple of tuples of
        ... can take for ever, and is never the name of a weight.
        """
        cheap = isinstance(key, (str, bytes, Global, Inert, type(None))) or (
            isinstance(key, int) and abs(key) < 1 << 60
        )
        return key if cheap else Inert(type(key).__name__)

    def build(self, state: object) -> None:
        """Attributes of the object on top. Nothing but an Inert or a ParameterDict takes any."""
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif (
            isinstance(target, Parameters)
            and isinstance(state, dict)
            and isinstance(state.get("_parameters"), dict)
        ):
            self.spend(len(state["_parameters"]))
            target.update(state["_parameters"])

    # ---- calling ---------------------------------------------------------------------------------

    def named(self, module: str, name: str) -> Global:
        if (
            not (isinstance(module, str) and isinstance(name, str))
            or len(module) + len(name) > 1000
        ):
            raise ValueError("its pickle looks up something that is no name")
        return Global(f"{module}.{name}")

    def call(self, fn: object, args: tuple) -> object:
        """Everything that a program can have done. What
        `fn` names is not imported, here or anywhere.
        """
        if not isinstance(args, tuple):
            raise ValueError("its pickle calls something without a tuple of arguments")
        match fn.name if isinstance(fn, Global) else None:
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
                return self.tensor(*args[:4])  # storage, offset, size, stride, ...
            case "torch._utils._rebuild_tensor_v3":
                return self.tensor(*args[:4], args[6])  # the storage is of bytes; a dtype follows
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                return args[0]
            case "torch._tensor._rebuild_from_type_v2":  # with attributes: (fn, type, args, ...)
                return self.call(args[0], args[2])
            case "collections.OrderedDict" | "collections.defaultdict":
                return {self.key(k): v for k, v in self.copied(args)}
            case "builtins.set" | "__builtin__.set":
                return {self.key(item) for item in self.copied(args)}
            case "torch.nn.modules.container.ParameterDict":
                return Parameters()
            case name:
                return Inert(name or "something unnamed")

    def copied(self, args: tuple) -> list:
        """The items a container is made of. Copies are counted,
        or a list copied a million times would fill the memory.
        """
        items = args[0] if args and isinstance(args[0], list) else []
        self.spend(len(items))
        return items

    def persistent(self, ident: object) -> object:
        """("storage", type, key, device, numel, None or a view
        of it) -> Storage. Devices are of no interest here.
        """
        if isinstance(ident, tuple) and ident[:1] == ("module",):  # a class beside its source text
            return ident[1]
        if not isinstance(ident, tuple) or len(ident) not in (5, 6):
            raise ValueError("its pickle refers to data in a way torch does not")
        kind, what, key, _, numel, view, *_ = *ident, None
        if kind != "storage" or not isinstance(what, Global) or not isinstance(key, str):
            raise ValueError("its pickle refers to data in a way torch does not")
        dtype = STORAGES.get(what.name.split(".")[-1])
        if dtype is None:
            raise ValueError(f"numbers of type {what.name}; expected one of: {', '.join(STORAGES)}")
        self.storages[key] = Storage(key, dtype, numel)
        return Storage(key, dtype, view[2], view[1]) if view else self.storages[key]


def _pairs(items: list) -> Iterable:
    return zip(items[::2], items[1::2])


OPS: dict[str, Callable[[Machine, object], None]] = {
    **dict.fromkeys(
        """INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING
        SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
        BINBYTES SHORT_BINBYTES BINBYTES8""".split(),
        Machine.push,
    ),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"), lambda m, slot: m.memo.update({slot: m.stack[-1]})
    ),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, slot: m.push(m.memo[slot])),
    "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.take(1),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.push({m.key(k): v for k, v in _pairs(m.since_mark())}),
    "SETITEM": lambda m, _: m.fill([m.take(2)]),
    "SETITEMS": lambda m, _: m.fill(_pairs(m.since_mark())),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "ADDITEMS": lambda m, _: m.extend(m.since_mark()),
    "FROZENSET": lambda m, _: m.push(frozenset(map(m.key, m.since_mark()))),
    "GLOBAL": lambda m, names: m.push(m.named(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.push(m.named(*m.take(2))),
    "REDUCE": lambda m, _: m.push(m.call(*m.take(2))),
    "NEWOBJ": lambda m, _: m.push(m.call(*m.take(2))),
    "NEWOBJ_EX": lambda m, _: m.push(m.call(*m.take(3)[:2])),
    "OBJ": lambda m, _: m.push(m.call(m.since_mark()[0], ())),
    "INST": lambda m, names: (m.since_mark(), m.push(m.call(m.named(*names.split(" ", 1)), ()))),
    "BUILD": lambda m, _: m.build(*m.take(1)),
    "BINPERSID": lambda m, _: m.push(m.persistent(*m.take(1))),
}
