# SPDX-License-Identifier: Apache-2.0
"""Group ids of any kind as numbers, and a batch in chunks of whole groups. Imports torch alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch

# Process whole groups in chunks of about this many positions: they stay in a CPU's cache.
_CHUNK_POSITIONS = 1 << 20


def group_ids(index: Any, rows: int, name: str = "index") -> list[Hashable]:
    """The B ids of ``index`` as a list; ``index`` is any sequence of B hashable ids, ``name`` its name in messages.

    Raises:
        ValueError: ``index`` does not have ``rows`` ids.
        TypeError: an id is not hashable.
    """
    if index is None:
        raise ValueError(f"{name} must have one group id (verl's uid) for each of the {rows} rows, got None")
    ids = index.tolist() if hasattr(index, "tolist") else list(index)
    # Tensors hash by identity: a list of them would be a group a row.
    ids = [group.item() if isinstance(group, torch.Tensor) and group.dim() == 0 else group for group in ids]
    if not isinstance(ids, list) or len(ids) != rows:
        raise ValueError(f"{name} must have one id for each of the {rows} rows, got {index!r:.200}")
    for row, group in enumerate(ids):
        try:
            hash(group)
        except TypeError:
            raise TypeError(f"{name} must hold hashable ids; row {row} has {group!r:.200}") from None
    return ids


def is_padding(uid: object) -> bool:
    """Whether a group id is that of verl's padding rows, which share one and belong to no group."""
    return str(uid).startswith("pad")


def group_numbers(index: Any, rows: int, device: torch.device, name: str = "index") -> torch.Tensor:
    """(B,) each row's group, counted from 0 as they appear; arguments and errors as for :func:`group_ids`."""
    numbers: dict[Hashable, int] = {}
    of_row = [numbers.setdefault(group, len(numbers)) for group in group_ids(index, rows, name)]
    found = torch.tensor(of_row, dtype=torch.long)
    # Pinned memory is copied without waiting for the GPU.
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def whole_groups(index: Sequence[Hashable] | torch.Tensor | Any, rows: int, width: int) -> Iterator[slice | list[int]]:
    """Rows of as many whole groups as stay in a CPU's cache, a group at least; every row once.

    The weights of a batch are those of its groups, and take less time and memory some groups at a time.

    Args:
        index: hashable group ids of the ``rows``, in any order.
        rows, width: B and T.

    Yields:
        A slice where the rows lie side by side, else their numbers in ascending order.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, group in enumerate(group_ids(index, rows)):
        groups.setdefault(group, []).append(row)
    chunks: list[list[int]] = [[]]
    for members in groups.values():
        if chunks[-1] and (len(chunks[-1]) + len(members)) * width > _CHUNK_POSITIONS:
            chunks.append([])
        chunks[-1] += members
    for chunk in map(sorted, chunks):
        side_by_side = chunk and chunk[-1] - chunk[0] + 1 == len(chunk)
        yield slice(chunk[0], chunk[-1] + 1) if side_by_side else chunk
