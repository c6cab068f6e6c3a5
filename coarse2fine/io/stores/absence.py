"""How a far server says that a chunk is not there, and whether it means that.

Formats have it that chunks of nothing but the fill value are left out, and web servers answer 404 for them. Others
answer 403, because they would have to list a folder to know (public buckets), or with a web page. But that is also what
servers say that are out of order, or have lost their rights, in the middle of a run: chunks that are there must not
become the fill value. So a server must have said the same when the volume was opened, and must still hand out
something that is known to be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from canvas import Box, Triple
from coarse2fine.io.stores.chunks import chunk_key, edges_of
from coarse2fine.io.stores.tensors import FAILURES, Answer, Store

_FAR_OUT = 10**9  # chunks; no array reaches that far


@dataclass(slots=True, eq=False)
class Absence:
    """What a server answers for chunks of an array that are not there.

    Attributes:
        store: Of the array.
        answer: For a chunk that cannot exist, asked when the array was opened: before anything can have gone wrong.
        witness: What is there: at first the array's metadata, then the last chunk that was read.
        failed: Whether the server was in trouble; then what tensorstore keeps of its answers may be wrong.
    """

    store: Store
    answer: Answer
    witness: tuple[Store, str]
    failed: bool = False

    @classmethod
    def learn(cls, store: Store, array: ts.TensorStore, metadata: tuple[Store, str]) -> Absence | None:
        """Asks a server for a chunk that cannot exist.

        Args:
            store: Of the array; None is returned if it is not far.
            array: As opened.
            metadata: Store and key of its metadata.

        Raises:
            Exception: What tensorstore raises.
        """
        if not store.is_far:
            return None
        edges = edges_of(array, shard=True)
        key = chunk_key(array, [o + _FAR_OUT * e for o, e in zip(array.domain.inclusive_min, edges, strict=True)])
        return cls(store, "missing" if key is None else store.answer(key), metadata)

    @property
    def is_odd(self) -> bool:
        """Whether tensorstore does not take the answer for what it means."""
        return self.answer not in ("missing", "value")

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Notes whether reading fails."""
        try:
            yield
        except FAILURES:
            self.failed = True
            raise

    def holds(self, key: str) -> bool:
        """Whether a server that is odd says of a chunk what it says of those that are not there, and is in order.

        It must say so before and after it has handed out what is there.

        Raises:
            Exception: What tensorstore raises if the server does not answer.
        """
        found = self.store.answer(key)
        if found == "value":
            self.saw(key)
        return found == self.answer and self._is_in_order() and self.store.answer(key) == self.answer

    def saw(self, key: str) -> None:
        """Notes a chunk that is there."""
        self.witness = (self.store, key)

    def check(self, voxels: NDArray[np.generic], fill: object, box: Box, edges: Triple) -> None:
        """Whether chunks of nothing but the fill value, as a server has handed them out, can be what was meant.

        Args:
            voxels: What was read.
            fill: The fill value.
            box: Where, (z, y, x).
            edges: Voxels of a chunk.

        Raises:
            ValueError: If the server does not have any more what it had.
            Exception: What tensorstore raises if it does not answer.
        """
        blank = voxels == fill
        for axis, (start, stop, edge) in enumerate(zip(box.start, box.stop, edges, strict=True)):
            borders = [0, *range(edge - start % edge, stop - start, edge)]
            blank = np.logical_and.reduceat(blank, borders, axis)
        if blank.any() and not self._is_in_order():
            raise ValueError(f"NOT_FOUND: {self.witness[0].where}/{self.witness[1]}")

    def _is_in_order(self) -> bool:
        where, key = self.witness
        return where.answer(key) == "value"
