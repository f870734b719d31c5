"""A process gives up its own rights to files, for good: Linux's Landlock (5.13 and later).

    keep_only(readable=["/usr", ...], hidden=["/usr/lib/.../minidiff"], own="/tmp/work")

From then on the kernel refuses to open anything else, whoever asks: Python, a library in C, a
program that is started. It needs no rights to do so. Newer kernels also refuse TCP and signals to
other processes. Returns False, and changes nothing, where the system has no Landlock.

The three calls have no wrapper in libc; their numbers and tables are those of linux/landlock.h.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterator

CREATE, ADD, RESTRICT = 444, 445, 446  # the same on every processor
VERSION = 1  # flag: say which version the kernel has
NO_NEW_PRIVILEGES = 38
EXECUTE, WRITE, READ, LIST = 1, 2, 4, 8
TRUNCATE = 1 << 14
# all rights to files that a version knows
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
TCP = 3  # bind and connect; from version 4 on
SCOPES = 3  # abstract sockets and signals; from version 6 on


def keep_only(readable: list[str], hidden: list[str], own: str) -> bool:
    """Keep the right to read what lies under `readable` but not under `hidden`, and all rights to
    the folder `own`. False: there is no Landlock here.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE, None, 0, VERSION)
    if version < 1:
        return False
    every = RIGHTS[max(known for known in RIGHTS if known <= version)]
    table = [every]
    if version >= 4:
        table.append(TCP)
    if version >= 6:
        table.append(SCOPES)
    attributes = struct.pack(f"={len(table)}Q", *table)
    rules = libc.syscall(CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return False
    kept = [(own, every)]
    kept.append((os.devnull, (READ | WRITE | TRUNCATE) & every))
    secret = [os.path.realpath(path) for path in hidden]
    for path in readable:
        kept += shown(os.path.realpath(path), secret)
    for path, rights in kept:
        _allow(libc, rules, path, rights)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    done = libc.syscall(RESTRICT, rules, 0) == 0
    os.close(rules)
    return done


def shown(path: str, hidden: list[str]) -> Iterator[tuple[str, int]]:
    """(path, rights) of a folder without what is hidden in it: names can be listed, and each part
    that holds nothing hidden can be read.
    """
    if path in hidden or not os.path.exists(path):
        return
    if os.path.isfile(path):
        yield path, READ | EXECUTE
    elif not any(secret.startswith(path.rstrip(os.sep) + os.sep) for secret in hidden):
        yield path, READ | LIST | EXECUTE
    else:
        yield path, LIST
        for name in os.listdir(path):
            inner = os.path.join(path, name)
            if not os.path.islink(inner):
                yield from shown(inner, hidden)


def _allow(libc, rules: int, path: str, rights: int) -> None:
    """One rule; a file has fewer rights than a folder."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    libc.syscall(ADD, rules, 1, struct.pack("=Qi", rights, place), 0)
    os.close(place)
