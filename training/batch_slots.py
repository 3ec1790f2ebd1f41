"""The memory that batches travel in: written by loader workers, read by training, and used again.

Memory made new for every batch would cost a worker a page fault every 4 KB and a file descriptor sent per tensor: together more
than reading, checking and parsing a sample.
Shapes: B local batch, S side of the picture.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from training.tokenizer import CONTEXT_LENGTH


class BatchSlots:
    """Room for a few batches: the tensors of `LocalBatch`, pictures as (B, S, S, 3) uint8.

    Sent to another process, it is the same memory there.
    """

    def __init__(self, count: int, *, batch_size: int, side: int) -> None:
        self._count = count
        self._tensors = {
            "images": torch.empty(count, batch_size, side, side, 3, dtype=torch.uint8),
            "caption_tokens": torch.empty(count, batch_size, CONTEXT_LENGTH, dtype=torch.int64),
            "name_tokens": torch.empty(count, batch_size, CONTEXT_LENGTH, dtype=torch.int64),
            "concept_ids": torch.empty(count, batch_size, dtype=torch.int64),
            "topic_ids": torch.empty(count, batch_size, dtype=torch.int64),
            "sample_index": torch.empty(count, batch_size, dtype=torch.int64),
            "replaced": torch.empty(count, batch_size, dtype=torch.bool),
        }

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, slot: int) -> dict[str, Tensor]:
        """The batch in a slot, in place."""
        return {name: tensor[slot] for name, tensor in self._tensors.items()}

    def share(self) -> None:
        """Move to shared memory, before the slots are sent to another process."""
        for tensor in self._tensors.values():
            tensor.share_memory_()

    @contextmanager
    def page_locked(self) -> Iterator[None]:
        """Meanwhile a GPU copies straight from here, without a detour over other memory."""
        runtime = torch.cuda.cudart()
        with ExitStack() as registered:
            for tensor in self._tensors.values():
                torch.cuda.check_error(int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)))
                registered.callback(runtime.cudaHostUnregister, tensor.data_ptr())
            yield
