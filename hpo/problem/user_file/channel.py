"""Messages between a worker and the process of a user's file: JSON, and tensors as bytes.

Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LENGTH = struct.Struct("!I")
_MOST_JSON, _MOST_TENSORS = 1 << 22, 1 << 32  # bytes
_PART = 1 << 20
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
                  torch.int32, torch.uint8, torch.bool)
}  # fmt: skip


class ChannelClosedError(Exception):
    """The other side is gone, or sent something that is not a message."""


class Channel:
    """One side of a pair of sockets.

    Args:
        send_s: seconds after which the other side counts as gone if it takes no message; None: wait
            for ever.
    """

    def __init__(self, end: socket.socket, send_s: float | None = None) -> None:
        end.settimeout(send_s)
        self._socket = end
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, message: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> None:
        """Send a message.

        Raises:
            ChannelClosedError: the other side is gone.
        """
        tensors = [t.detach().cpu().contiguous() for t in tensors]
        described = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in tensors]
        header = json.dumps({**message, "tensors": described}).encode()
        try:
            self._socket.sendall(_LENGTH.pack(len(header)) + header)
            for tensor in tensors:
                self._socket.sendall(_bytes_of(tensor))
        except OSError as error:
            raise ChannelClosedError from error

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], list[Tensor]] | None:
        """Receive a message and its tensors; None if it is not complete after ``timeout_s``.

        Raises:
            ChannelClosedError: the other side is gone.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._next()) is None:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                if not select.select([self._socket], [], [], left_s)[0]:
                    return None
                part = self._socket.recv(_PART)
            except OSError as error:
                raise ChannelClosedError from error
            if not part:
                raise ChannelClosedError
            self._buffer += part
        return message

    def _next(self) -> tuple[dict[str, Any], list[Tensor]] | None:
        """The first message of what was received, if it is complete."""
        have = len(self._buffer)
        if have < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > _MOST_JSON:
            raise ChannelClosedError
        start = _LENGTH.size + length
        if have < start:
            return None
        try:
            message = json.loads(self._buffer[_LENGTH.size : start])
            kinds = [(_DTYPES[name], tuple(shape)) for name, shape in message.pop("tensors")]
            sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in kinds]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChannelClosedError from error
        if not 0 <= sum(sizes) <= _MOST_TENSORS:
            raise ChannelClosedError
        if have < start + sum(sizes):
            return None
        tensors = []
        for (dtype, shape), size in zip(kinds, sizes, strict=True):
            data = self._buffer[start : start + size]
            flat = torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype)
            tensors.append(flat.view(shape))
            start += size
        del self._buffer[:start]
        return message, tensors


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0).byte()
    return flat.numpy().data
