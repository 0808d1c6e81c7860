"""Memory that is not there, said by the name of what was asked for."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from fedlab_core.check import checked


@contextlib.contextmanager
def fits(**asked: Any) -> Iterator[None]:
    """Name what was asked for where the block finds no memory for it: torch and safetensors do not.

    Raises:
        MemoryError: in the place of theirs; it names the arguments.
    """
    try:
        yield
    except BaseException as error:
        of_torch = isinstance(error, RuntimeError) and re.search(r"allocate memory|out of memory", str(error))
        of_safetensors = type(error).__name__ == "PanicException"
        if not (isinstance(error, MemoryError) or of_torch or of_safetensors):
            raise
        shown = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        raise MemoryError(f"{shown}: there is not enough memory") from error


@checked
def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Contiguous tensors as the bytes of a safetensors file.

    Raises:
        MemoryError: there is no room for them; safetensors itself would end the process.
    """
    bytearray(2 * sum(tensor.nbytes for tensor in tensors.values()) + 2**20)  # it writes them once and copies that
    return safetensors.torch.save(dict(tensors))
