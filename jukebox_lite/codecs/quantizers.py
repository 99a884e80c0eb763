"""One face for vector-quantize-pytorch's many: latents [B, D, T] in, `Quantized` out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from jukebox_lite.codecs.codebook import ChunkedCodebook


@dataclass
class Quantized:
    """What a quantizer makes of a latent."""

    latent: Tensor  # [B, D, T] what the decoder sees; gradients pass straight through
    codes: Tensor  # [B, K, T] int64, or [B, D, T] where there is no vocabulary
    loss: Tensor  # [] the quantizer's own penalty, summed over codebooks


class Quantizer(nn.Module, ABC):
    """Latents to codes and back."""

    vocab_size: int | None  # entries per codebook; None where codes are continuous
    channels: int  # codebooks K

    @abstractmethod
    def forward(self, latent: Tensor) -> Quantized:
        """Latent [B, D, T] -> its nearest codes; in training mode the codebook learns from it."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] -> the latent [B, D, T] that `forward` gave with them."""

    @abstractmethod
    def vectors(self) -> Tensor:
        """What each code of each codebook adds to the latent [K, V, D]."""


class VQ(Quantizer):
    """One codebook, learnt by moving average; unused entries restart from the batch (Jukebox, section 3.1).

    `dead_below` is the share of an even use under which an entry restarts; the library's defaults (decay 0.8,
    no restarts) leave most of a codebook dead. The rotation trick (Fifty et al. 2024) turns the decoder's gradient along with the
    latent instead of passing it straight through.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float = 0.99,
        commitment_weight: float = 0.02,
        dead_below: float = 0.03,
        kmeans_init: bool = True,
        rotation_trick: bool = False,
    ):
        super().__init__()
        self.vocab_size, self.channels = codebook_size, 1
        self.vq = VectorQuantize(dim, codebook_size, commitment_weight=commitment_weight, rotation_trick=rotation_trick)
        self.vq._codebook = ChunkedCodebook(dim, codebook_size, decay, dead_below, kmeans_init)

    def forward(self, latent: Tensor) -> Quantized:
        entries, codes, loss = self.vq(rearrange(latent.float(), "b d t -> b t d"))
        return Quantized(rearrange(entries, "b t d -> b d t"), rearrange(codes, "b t -> b 1 t"), loss)

    def decode(self, codes: Tensor) -> Tensor:
        return rearrange(self.vq.get_output_from_indices(rearrange(codes, "b 1 t -> b t")), "b t d -> b d t")

    def vectors(self) -> Tensor:
        return rearrange(self.vq.codebook, "v d -> 1 v d")
