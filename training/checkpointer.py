"""Saving in the background: the step pays for copying the state to the CPU, a thread does the rest.

One save is in flight at most; the next one waits for it.  A failure is kept as `problem` until the loop, which asks on every
rank at once, stops the run with it.
"""

import logging
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor

from training.checkpoint import CheckpointManifest, TrainState, remove_old, save_checkpoint
from training.engine import Engine, FullState

logger = logging.getLogger(__name__)


class Checkpointer:
    """Checkpoints of a run, written by one rank.  Use as a context: leaving it waits for the save in flight."""

    def __init__(
        self,
        folder_uri: str,
        *,
        keep: int,
        on_saving: Callable[[], None],
        on_saved: Callable[[CheckpointManifest], None],
        in_use: Callable[[], Collection[str]],
    ) -> None:
        """
        Args:
            on_saving: called in the background thread before a save, for what must be durable before the checkpoint is.
            on_saved: called there when the checkpoint is whole.
            in_use: URIs of checkpoints that must not be removed now.
        """
        self.folder_uri = folder_uri
        self._keep = keep
        self._on_saving, self._on_saved, self._in_use = on_saving, on_saved, in_use
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None
        self._buffers: FullState | None = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exit_info: object) -> None:
        self._thread.shutdown(wait=True)
        if (problem := self.problem) and problem not in str(exit_info[1]):
            logger.error("%s", problem)  # the run ends with another error; this one is not lost

    @property
    def problem(self) -> str | None:
        """Why the last save failed, as soon as it is known."""
        if self._in_flight is None or not self._in_flight.done():
            return None
        error = self._in_flight.exception()
        return f"a checkpoint could not be saved to {self.folder_uri}: {error!r}" if error else None

    def wait(self) -> None:
        """Until no save is in flight.  Never raises: see `problem`."""
        if self._in_flight is not None:
            self._in_flight.exception()

    def save(self, state: TrainState, engine: Engine) -> None:
        """Copy the state to the CPU, leave the rest to the thread.  Every other rank must call `engine.join_full_state`."""
        self.wait()  # until then the buffers are being written
        assert self.problem is None, "ask for the problem before saving again"
        self._buffers = engine.full_state(self._buffers)
        self._in_flight = self._thread.submit(self._write, state, self._buffers)

    def _write(self, state: TrainState, full: FullState) -> None:
        self._on_saving()
        manifest = save_checkpoint(self.folder_uri, state, full)
        remove_old(self.folder_uri, keep=self._keep, spare=self._in_use())
        self._on_saved(manifest)
