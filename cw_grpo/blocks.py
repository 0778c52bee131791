"""(B, T) tensors gone through in blocks of rows that stay in a CPU's cache. Imports torch and numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

# About so many tokens make a block.
_BLOCK_TOKENS = 1 << 17


@dataclass(frozen=True)
class Block:
    """R rows cut to L tokens: valid before ``start``, and from there on where ``valid`` is 1, not 0.

    ``rows`` None means all B rows and T tokens, as they are.
    """

    rows: torch.Tensor | None
    start: int
    length: int
    valid: torch.Tensor

    def read(self, values: torch.Tensor) -> torch.Tensor:
        """(R, L) of (B, T) ``values`` that are finite, 0 where masked."""
        if self.rows is not None:
            values = values[:, : self.length].index_select(0, self.rows)
        return self.clear(values.to(self.valid.dtype))

    def clear(self, values: torch.Tensor) -> torch.Tensor:
        """(R, L) finite values with 0 where masked; it may use their memory."""
        # Several times faster than a masked_fill or a where.
        if self.rows is None:
            return values * self.valid
        values[:, self.start :].mul_(self.valid)
        return values

    def tokens(self) -> torch.Tensor:
        """(R,) valid tokens."""
        return self.start + self.valid.sum(-1)


class Blocks:
    """The blocks of a (B, T) mask: rows of about one length together. All is one block if small, or not to be cut."""

    def __init__(self, mask: torch.Tensor, dtype: torch.dtype, cut: bool) -> None:
        self.mask, self.dtype = mask, dtype
        self.places = self._cut() if cut and mask.numel() > _BLOCK_TOKENS else None
        if self.places is None:
            self.whole = Block(None, 0, mask.shape[1], mask.bool().to(dtype))

    def _cut(self) -> list[tuple[torch.Tensor, int, int]]:
        """Rows of each block, the first token that is masked in one of them, and the length."""
        rows, width = self.mask.shape
        counts, firsts = [], []
        for part in self.mask.split(max(1, _BLOCK_TOKENS // width)):
            # numpy is several times faster than torch at these.
            valid = (part.float() if part.dtype == torch.bfloat16 else part).numpy() != 0
            counts.append(valid.sum(1))
            firsts.append(valid.argmin(1))
        count, first = np.concatenate(counts), np.concatenate(firsts)
        first[count == width] = width
        end = np.where(count == first, first, width)
        order = np.argsort(-end, kind="stable")
        self.order = torch.from_numpy(order)
        self.back = torch.from_numpy(np.argsort(order))
        places, begin = [], 0
        while begin < rows:
            length = max(1, int(end[order[begin]]))
            chosen = order[begin : begin + max(1, _BLOCK_TOKENS // length)]
            places.append((torch.from_numpy(chosen), min(length, int(first[chosen].min())), length))
            begin += len(chosen)
        return places

    def __iter__(self) -> Iterator[Block]:
        if self.places is None:
            yield self.whole
            return
        for rows, start, length in self.places:
            valid = self.mask[:, start:length].index_select(0, rows).bool()
            yield Block(rows, start, length, valid.to(self.dtype))

    def map(self, function: Callable[..., tuple[torch.Tensor, ...]], *per_row: torch.Tensor) -> list[torch.Tensor]:
        """``function(block, *(R, 1) of each per_row)`` of each block, its (R,) results put together to (B,)."""
        columns = [column.to(self.dtype).unsqueeze(-1) for column in per_row]
        if self.places is None:
            return list(function(self.whole, *columns))
        sizes = [len(rows) for rows, _, _ in self.places]
        parts = [column[self.order].split(sizes) for column in columns]
        results = [function(block, *part) for block, *part in zip(self, *parts, strict=True)]
        return [torch.cat(result)[self.back] for result in zip(*results, strict=True)]

    def map_tokens(
        self, function: Callable[..., tuple[torch.Tensor, ...]], *per_row: torch.Tensor
    ) -> list[torch.Tensor]:
        """The same for a function whose first result is (R, L), put together to (B, T) float32."""
        if self.places is None:
            tokens, *rest = self.map(function, *per_row)
            return [tokens.float(), *rest]
        # numpy asks for large pages, and every element is written once: clearing a large new tensor of torch's takes
        # as long as the work itself.
        out = torch.from_numpy(np.empty(self.mask.shape, dtype=np.float32))

        def write(block: Block, *part: torch.Tensor) -> tuple[torch.Tensor, ...]:
            tokens, *rest = function(block, *part)
            out[:, : block.length].index_copy_(0, block.rows, tokens.float())
            out[:, block.length :].index_fill_(0, block.rows, 0)
            return tuple(rest)

        return [out, *self.map(write, *per_row)]

    def spread(self, per_row: torch.Tensor) -> torch.Tensor:
        """(B, T) float32: a number for each row where the mask is, 0 elsewhere."""
        return self.map_tokens(lambda block, number: (block.clear(number.repeat(1, block.length)),), per_row)[0]
