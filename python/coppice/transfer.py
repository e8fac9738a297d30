"""Parts of tensors go from the ranks that have them to those that need them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from coppice.errors import UnsupportedError, UsageError
from coppice.ranks import broadcast_bytes, collective_device, gathered, raise_on_all, this_rank
from coppice.regions import Box, contains, count, cut, hull, joined, overlap, sizes, whole

# A tensor: the path of a parameter or buffer, and the name of a tensor of its optimizer state, or "" for itself.
Key = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class _Kind:
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclasses.dataclass
class Wish:
    """What this rank needs to fill its part of one new tensor.

    Attributes
    ----------
    boxes : dict
        Parts of old tensors.
    fill : callable
        Fills the new tensor from them. It must not communicate.
    device : device
        Where they are wanted.
    """

    boxes: dict[Key, list[Box]]
    fill: Callable[[Fetched], None]
    device: torch.device


class Fetched:
    """Parts of old tensors, on this rank."""

    def __init__(self) -> None:
        self._parts: dict[Key, list[tuple[Box, Tensor]]] = {}

    def add(self, key: Key, box: Box, tensor: Tensor) -> None:
        """Have this part."""
        self._parts.setdefault(key, []).append((box, tensor))

    def parts(self, key: Key) -> list[tuple[Box, Tensor]]:
        """All parts of a tensor that are here."""
        return self._parts.get(key, [])

    def part(self, key: Key, box: Box) -> Tensor:
        """A part that was wished for; zeros of a state that no rank has, since no gradient has reached it."""
        for has, tensor in self.parts(key):
            if contains(has, box):
                return cut(tensor, has, box)
        return torch.zeros(sizes(box))


@dataclasses.dataclass
class _Move:
    """A rank sends a part of a tensor to all."""

    key: Key
    owner: int
    box: Box


class Transfer:
    """The tensors of a model and its optimizer over all ranks.

    Memory: beside what a wish asks for, one part of a tensor as one rank has it.

    Ranks: collective over the default group, from the beginning to the end.

    Parameters
    ----------
    tensors : dict
        Those of this rank: the memory, which part of the tensor it is, and the tensor's whole shape.

    Raises
    ------
    UnsupportedError
        The ranks together do not have each element of a tensor once.
    UsageError
        Ranks differ in the shape or dtype of a tensor.
    """

    def __init__(self, tensors: dict[Key, tuple[Tensor, Box, tuple[int, ...]]]) -> None:
        self._own = {key: (tensor, box) for key, (tensor, box, _) in tensors.items()}
        kinds = {key: (_Kind(tuple(shape), tensor.dtype), box) for key, (tensor, box, shape) in tensors.items()}
        self._kinds: dict[Key, _Kind] = {}
        self._has: list[dict[Key, Box]] = []
        self._pieces: dict[Key, dict[Box, int]] = {}
        for rank, of_rank in enumerate(gathered(kinds)):
            self._has.append({key: box for key, (_, box) in of_rank.items()})
            for key, (kind, box) in of_rank.items():
                if self._kinds.setdefault(key, kind) != kind:
                    raise UsageError(f"{_named(key)}: rank {rank} has {kind}, and another rank {self._kinds[key]}")
                if count(box):
                    self._pieces.setdefault(key, {}).setdefault(box, rank)
        for key, pieces in self._pieces.items():
            if sum(map(count, pieces)) != count(whole(self._kinds[key].shape)):
                raise UnsupportedError(
                    f"{_named(key)}: the parts of the ranks, {sorted(pieces)}, are not each element of "
                    f"{list(self._kinds[key].shape)} once (save a distributed checkpoint and expand it with "
                    "coppice-dcp)"
                )

    def forget(self, key: Key) -> None:
        """Do not hold a tensor any longer, when no rank needs it."""
        self._own.pop(key, None)

    def run(self, wishes: dict[Key, Wish], after: Callable[[Key], None]) -> None:
        """Carry out the wishes of all ranks.

        Parameters
        ----------
        wishes : dict
            By the new tensor; the order is that of the keys, the same on all ranks.
        after : callable
            Called with each old tensor when no rank needs it any more.

        Raises
        ------
        PeerError
            Only another rank failed.
        """
        for each in wishes.values():
            each.boxes = {old: joined(boxes) for old, boxes in each.boxes.items()}
        everyone = gathered({key: wish.boxes for key, wish in wishes.items()})
        order = sorted(set().union(*everyone))
        last = {old: key for key in order for of_rank in everyone for old in of_rank.get(key, {})}
        done: dict[Key, list[Key]] = {}
        for old, key in last.items():
            done.setdefault(key, []).append(old)
        error: BaseException | None = None
        buffer: Tensor | None = None
        for key in order:
            wish, fetched = wishes.get(key), Fetched()
            moves = list(self._moves([of_rank.get(key, {}) for of_rank in everyone]))
            try:
                if error is None:
                    buffer = self._with_room(buffer, moves)
                    if wish is not None:
                        self._make_room(wish, fetched)
            except BaseException as found:
                error = found
            if moves:
                raise_on_all(error)
                assert buffer is not None
                for move in moves:
                    self._send(move, buffer, fetched)
            try:
                if error is None and wish is not None:
                    wish.fill(fetched)
                for old in done.get(key, []) if error is None else []:
                    after(old)
            except BaseException as found:
                error = found
        raise_on_all(error)

    def _moves(self, wishes: list[dict[Key, list[Box]]]) -> Iterator[_Move]:
        """What is sent for one new tensor; the same on all ranks."""
        for key in sorted(set().union(*wishes)):
            wanted = [(rank, box) for rank, of_rank in enumerate(wishes) for box in of_rank.get(key, [])]
            wanted = [(rank, box) for rank, box in wanted if not self._is_on(rank, key, box)]
            for piece, owner in self._pieces.get(key, {}).items() if wanted else []:
                near = [
                    (rank, box)
                    for rank, box in wanted
                    if not box or box[0][0] < piece[0][1] and piece[0][0] < box[0][1]
                ]
                parts = [(rank, overlap(box, piece)) for rank, box in near]
                sent = [part for rank, part in parts if part is not None and not self._is_on(rank, key, part)]
                if sent:
                    yield _Move(key, owner, hull(sent))

    def _is_on(self, rank: int, key: Key, box: Box) -> bool:
        """Whether a rank has a part of a tensor itself."""
        own = self._has[rank].get(key)
        return own is not None and contains(own, box)

    def _with_room(self, buffer: Tensor | None, moves: list[_Move]) -> Tensor | None:
        """A buffer with room for each of them; the same one again, if it is large enough."""
        wanted = max((count(move.box) * self._kinds[move.key].dtype.itemsize for move in moves), default=0)
        if wanted <= (0 if buffer is None else buffer.numel()):
            return buffer
        return torch.empty(wanted, dtype=torch.uint8, device=collective_device())

    def _make_room(self, wish: Wish, fetched: Fetched) -> None:
        """What this rank has itself, and empty room for the rest."""
        for key, boxes in wish.boxes.items():
            if key not in self._pieces:
                continue
            for box in boxes:
                own = self._own.get(key)
                if own is not None and contains(own[1], box):
                    fetched.add(key, box, cut(own[0], own[1], box))
                    continue
                room = torch.empty(sizes(box), dtype=self._kinds[key].dtype, device=wish.device)
                fetched.add(key, box, room)
                part = None if own is None else overlap(own[1], box)
                if own is not None and part is not None:
                    cut(room, box, part).copy_(cut(own[0], own[1], part))

    def _send(self, move: _Move, buffer: Tensor, fetched: Fetched) -> None:
        dtype = self._kinds[move.key].dtype
        flat = buffer[: count(move.box) * dtype.itemsize]
        values = flat.view(dtype).view(sizes(move.box))
        if move.owner == this_rank():
            tensor, box = self._own[move.key]
            values.copy_(cut(tensor, box, move.box))
        broadcast_bytes(flat, move.owner)
        own = self._own.get(move.key)
        for box, room in fetched.parts(move.key):
            part = overlap(box, move.box)
            if part is not None and (own is None or not contains(own[1], part)):
                cut(room, box, part).copy_(cut(values, move.box, part))


def _named(key: Key) -> str:
    return f"optimizer state '{key[1]}' of {key[0]}" if key[1] else key[0]
