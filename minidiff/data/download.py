"""A public file, fetched once and checked: it appears under its name only when it is right.

Try: `download(URL, Path("data/file.gz"), SHA256)` and interrupt it: nothing is left behind.
"""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from tqdm import tqdm

KINDS = {32: "MD5", 64: "SHA-256"}  # by the number of hexadecimal digits


def download(
    url: str, target: Path, checksum: str, *, title: str = "", progress: bool = True
) -> Path:
    """What `url` holds, as the file `target`, whose folder is made. `checksum`: MD5 or SHA-256 in
    hexadecimal.

    OSError: no route, refused, timed out, broken off. ValueError: it came with another checksum.
    Nothing is kept then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    kind = KINDS[len(checksum)]
    try:
        with open(part, "wb") as out:
            digest = hashlib.new(kind.replace("-", ""), usedforsecurity=False)
            found = copy_url(url, out, digest, title, progress)
        if found != checksum:
            raise ValueError(
                f"{url} came with {kind} {found}, expected {checksum}; nothing was kept, try again"
            )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def copy_url(url: str, out, digest, title: str, progress: bool) -> str:
    """Write what `url` holds to the open file `out`; its checksum."""
    try:
        with urllib.request.urlopen(url, timeout=60) as web:
            size = int(web.headers.get("Content-Length") or 0) or None
            with tqdm(
                total=size, unit="B", unit_scale=True, desc=title, disable=not progress
            ) as bar:
                while chunk := web.read(2**20):
                    out.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
    except (OSError, http.client.HTTPException) as e:
        raise OSError(f"could not download {url} ({e})") from e
    return digest.hexdigest()
