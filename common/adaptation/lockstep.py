"""Parts of the images side by side through a network: at each layer with statistics they wait for one another.

A layer's statistics are those of all images behind the layers before it, so all of them must have come as far. In
parts they stay in the processor's caches, and only what a layer reads is there of all of them. Each part has a thread,
of which one runs at a time; the network must not keep on itself what belongs to one image.
"""

import threading
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from common.adaptation.moments import Norm, hooked, of_images, run
from common.errors import UserError

Parts = list[tuple[Tensor, Tensor]]  # ``of_images`` of every part, in order


class _Stopped(BaseException):
    """A part is not to go on."""


class _Part(threading.Thread):
    """One part's pass, which goes on when it is told to and says where it waits.

    Attributes:
        at: the layer that it has come to, and the moments of its images there; None: it has passed the last one.
        logits: (n, C) float32, once it is through.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__(daemon=True)
        self.network, self.images = network, images
        self.at: tuple[Norm, tuple[Tensor, Tensor]] | None = None
        self.logits = torch.empty(0)
        self._failure: BaseException | None = None
        self._stopped = False
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        try:
            self._until_told()
            with torch.no_grad():
                self.logits = run(self.network, self.images)
        except _Stopped:
            pass
        except BaseException as error:  # for the thread that told it to go on
            self._failure = error
        self.at = None
        self._waits.release()

    def advance(self) -> None:
        """From another thread: go on to the next layer, or to the end."""
        self._go.release()
        self._waits.acquire()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """From another thread: never mind the rest."""
        self._stopped = True
        self._go.release()
        self.join()

    def arrive(self, norm: Norm, x: Tensor) -> None:
        self.at = norm, of_images(x, norm, len(self.images))
        self._waits.release()
        self._until_told()

    def _until_told(self) -> None:
        self._go.acquire()
        if self._stopped:
            raise _Stopped


def in_step(
    network: nn.Module, parts: Iterable[Tensor], layers: Sequence[Norm], settle: Callable[[Norm, Parts], None]
) -> Tensor:
    """Logits of all parts, (n, C) float32, of a pass in which ``settle`` precedes each of the layers.

    Raises:
        UserError: parts come to different layers.
    """
    passes = [_Part(network, images) for images in parts]
    mine: dict[threading.Thread, _Part] = {one: one for one in passes}
    try:
        with hooked(layers, lambda norm, x: mine[threading.current_thread()].arrive(norm, x)):
            for one in passes:
                one.start()
            while True:
                for one in passes:
                    one.advance()
                found = [one.at for one in passes if one.at is not None]
                if not found:
                    break
                norm, _ = found[0]
                if len(found) < len(passes) or any(other is not norm for other, _ in found):
                    raise UserError("the images do not take the same way through this network; it cannot be re-aligned")
                settle(norm, [moments for _, moments in found])
    finally:
        for one in passes:
            if one.is_alive():
                one.stop()
    return torch.cat([one.logits for one in passes])
