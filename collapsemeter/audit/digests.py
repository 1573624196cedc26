"""SHA-256 of rows and files, wherever the files lie."""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..activations.manifest import sha256_of_path
from ..activations.remote import local_path
from .job import LABELS, MASK, Piece, Shard, StoredArray

Digests = Mapping[Shard, Mapping[str, str]]  # of the files of shards


def digests_of(shard: Shard, cache: str) -> dict[str, str]:
    """Return the SHA-256 of every file of a shard; raise ValueError if the manifest has another."""
    digests = {file: digest_of(file, cache) for file in shard.counted_files}
    for file, recorded in shard.recorded.items():
        check_recorded(file, digests[file], recorded)
    return digests


def check_recorded(file: str, digest: str, recorded: str) -> None:
    """Raise ValueError unless a file is what the manifest says."""
    if digest != recorded:
        raise ValueError(
            f"{file} has SHA-256 {digest[:12]}..., the manifest says {recorded[:12]}...: it was changed or "
            "damaged after it was written; write the activations again"
        )


def digest_of(file: str, cache: str) -> str:
    """Return the SHA-256 of a file; of one that many shards share, such as that of all labels, once."""
    path = local_path(file, cache)
    about = path.stat()
    if not path.is_file():  # a folder does not tell whether what is in it was changed
        return sha256_of_path(path)
    return _digest_once(str(path), about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest_once(path: str, *version: int) -> str:
    return sha256_of_path(path)


def rows_id(piece: Piece, digests: Mapping[str, str]) -> str:
    """Return what identifies the rows of a piece, wherever its files lie and whatever they are called."""
    parts = [_source(stored, digests) for stored in piece.shard.layers.values()]
    return hash_of([parts, piece.start, piece.stop])


def labels_id(shard: Shard, digests: Mapping[str, str]) -> str:
    """Return what identifies the labels and the mask of a shard."""
    roles = [role for role in (LABELS, MASK) if role in shard.extras]
    return hash_of([_source(shard.extras[role], digests) for role in roles])


def _source(stored: StoredArray, digests: Mapping[str, str]) -> list[Any]:
    return [digests[stored.file], stored.inside, stored.offset]


def hash_of(plain: Any) -> str:
    """Return the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
