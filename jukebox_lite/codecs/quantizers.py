"""One face for vector-quantize-pytorch's many: latents [B, D, T] in, `Quantized` out."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import vector_quantize_pytorch as library
from einops import rearrange
from torch import Tensor, nn
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from jukebox_lite.codecs.codebook import ChunkedCodebook, DirectionCodebook, Standardize
from jukebox_lite.errors import InputError


@dataclass
class Quantized:
    """What a quantizer makes of a latent."""

    latent: Tensor  # [B, D, T] what the decoder sees; gradients pass straight through
    codes: Tensor  # [B, K, T] int64, or [B, D, T] where there is no vocabulary
    loss: Tensor  # [] the quantizer's own penalty, summed over codebooks
    revived: Tensor | None = None  # [K, V] which dead entries were just set to latents of the batch


class Quantizer(nn.Module, ABC):
    """Latents to codes and back."""

    vocab_size: int | None  # entries per codebook; None where codes are continuous
    channels: int  # codebooks K
    advice: str = "a lower optimizer.lr or a smaller codebook"  # what to change where few codes come into use

    @abstractmethod
    def forward(self, latent: Tensor) -> Quantized:
        """Latent [B, D, T] -> its nearest codes; in training mode the codebook learns from it."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] -> the latent [B, D, T] that `forward` gave with them."""

    @abstractmethod
    def vectors(self) -> Tensor:
        """What each code of each codebook adds to the latent [K, V, D]."""


class Adapter(Quantizer):
    """A quantizer that leaves the work to the library's; in full precision, the axis turned here and nowhere else.

    Where entries do not start from the latents, `dim` has the latents standardised for them.
    """

    def __init__(self, dim: int | None = None):
        super().__init__()
        self.standardize = nn.Identity() if dim is None else Standardize(dim)

    @abstractmethod
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, T, D] -> what the decoder sees [B, T, D], integer codes [B, T, K] and a loss []."""

    def forward(self, latent: Tensor) -> Quantized:
        with torch.autocast(latent.device.type, enabled=False):
            seen, codes, loss = self.quantize(self.standardize(rearrange(latent.float(), "b d t -> b t d")))
        codes = rearrange(codes.long(), "b t k -> b k t")
        return Quantized(rearrange(seen, "b t d -> b d t"), codes, loss, self.revived())

    def decode(self, codes: Tensor) -> Tensor:
        pairs = zip(self.vectors(), codes.unbind(1), strict=True)
        return rearrange(torch.stack([F.embedding(each, vectors) for vectors, each in pairs]).sum(0), "b t d -> b d t")

    def revived(self) -> Tensor | None:
        """Which entries [K, V] the last training batch revived; None where nothing ever is."""
        return None


class VQ(Adapter):
    """One codebook, learnt by moving average; unused entries restart from the batch (Jukebox, section 3.1).

    `dead_below` is the share of an even use under which an entry restarts; the library's defaults (decay 0.8,
    no restarts) leave most of a codebook dead. The rotation trick (Fifty et al. 2024) turns the decoder's gradient
    along with the latent instead of passing it straight through.
    """

    advice = "quantizer.kmeans_init=true, a higher quantizer.dead_below, a lower optimizer.lr or a smaller codebook"

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
        options = {"commitment_weight": commitment_weight, "rotation_trick": rotation_trick}
        self.vq = library.VectorQuantize(dim, codebook_size, **options)
        self.vq._codebook = ChunkedCodebook(dim, codebook_size, decay, dead_below, kmeans_init)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        entries, codes, loss = self.vq(x)
        return entries, rearrange(codes, "b t -> b t 1"), loss

    def vectors(self) -> Tensor:
        return rearrange(self.vq.codebook, "v d -> 1 v d")

    def revived(self) -> Tensor | None:
        return _codebook(self.vq).revived


class RVQ(Adapter):
    """Several codebooks, each learning what those before it leave over (Zeghidour et al. 2021, section III-C).

    The library passes the decoder's gradient on once for every codebook, K times too much, and rotates each layer's
    part by itself; here their sum is passed on, once.
    """

    advice = VQ.advice

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int,
        decay: float = 0.99,
        commitment_weight: float = 0.02,
        dead_below: float = 0.03,
        kmeans_init: bool = True,
        rotation_trick: bool = False,
    ):
        super().__init__()
        self.vocab_size, self.channels = codebook_size, num_codebooks
        self.rotation_trick = rotation_trick
        options = {"commitment_weight": commitment_weight, "route_gradients_to_input": False}
        self.rvq = library.ResidualVQ(dim=dim, num_quantizers=num_codebooks, codebook_size=codebook_size, **options)
        for layer in self.rvq.layers:
            layer._codebook = ChunkedCodebook(dim, codebook_size, decay, dead_below, kmeans_init)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        entries, codes, losses = self.rvq(x)
        if self.training and x.requires_grad:
            entries = rotate_to(x, entries) if self.rotation_trick else x + (entries - x).detach()
        return entries, codes, losses.sum()

    def vectors(self) -> Tensor:
        return torch.cat([_codebook(layer).embed for layer in self.rvq.layers])

    def revived(self) -> Tensor | None:
        return torch.cat([_codebook(layer).revived for layer in self.rvq.layers])


class SimVQ(Adapter):
    """One codebook that is a learnt linear view of frozen random entries: all of it moves at once (Zhu et al. 2024).

    `commitment_weight` draws latents to their entries, `codebook_weight` the entries to them.
    """

    advice = "a higher quantizer.codebook_weight, a lower optimizer.lr or a smaller codebook"

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        rotation_trick: bool = True,
    ):
        super().__init__(dim)
        if codebook_weight <= 0:
            raise InputError(f"quantizer.codebook_weight={codebook_weight}: give more than 0, or nothing is learnt")
        self.vocab_size, self.channels = codebook_size, 1
        self.simvq = library.SimVQ(
            dim,
            codebook_size,
            rotation_trick=rotation_trick,
            commitment_weight=codebook_weight,  # the library's name for the weight of both terms together
            input_to_quantize_commit_loss_weight=commitment_weight / codebook_weight,
        )

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        entries, codes, loss = self.simvq(x)
        return entries, rearrange(codes, "b t -> b t 1"), loss

    def vectors(self) -> Tensor:
        return rearrange(self.simvq.codebook, "v d -> 1 v d")


class DAC(Adapter):
    """Several codebooks of few dimensions, learnt by gradient, searched by direction (Kumar et al. 2023, section 3.2).

    Each looks at what those before it leave over, through a projection of its own. `commitment_weight` draws latents
    to their entries, `codebook_weight` the entries to them. DAC's own neither start from the data nor are revived, and
    a coarse level's came down to 2 of 1024 in 80 steps; `kmeans_init: false` and `dead_below: 0` are as it does.
    """

    advice = VQ.advice

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int,
        codebook_dim: int = 8,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        decay: float = 0.95,
        dead_below: float = 0.1,
        kmeans_init: bool = True,
        rotation_trick: bool = False,
    ):
        super().__init__(dim)
        self.vocab_size, self.channels, self.codebook_weight = codebook_size, num_codebooks, codebook_weight
        options = {"commitment_weight": commitment_weight, "rotation_trick": rotation_trick, "ema_update": False}
        layers = [library.VectorQuantize(dim, codebook_size, codebook_dim, **options) for _ in range(num_codebooks)]
        for layer in layers:
            layer._codebook = DirectionCodebook(codebook_dim, codebook_size, decay, dead_below, kmeans_init)
        self.layers = nn.ModuleList(layers)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen, chosen, losses, left = torch.zeros_like(x), [], [], x
        for layer in self.layers:
            assert isinstance(layer, library.VectorQuantize)
            entries, codes, commitment = layer(left)
            with torch.no_grad():
                wanted = layer.get_submodule("project_in")(left)
            learnt = F.mse_loss(F.embedding(codes, layer.codebook), wanted)
            seen, left = seen + entries, left - entries
            chosen.append(codes)
            losses.append(commitment + self.codebook_weight * learnt)
        return seen, torch.stack(chosen, -1), torch.stack(losses).sum()

    def revived(self) -> Tensor | None:
        return torch.cat([_codebook(layer).revived for layer in self.layers])

    def vectors(self) -> Tensor:
        layers = (layer for layer in self.layers if isinstance(layer, library.VectorQuantize))
        return torch.stack([layer.project_out(layer.codebook) for layer in layers])


class FSQ(Adapter):
    """Rounding on a few bounded axes; nothing to learn but the projections to them and back (Mentzer et al. 2023).

    `axes` are the numbers of values on each, 3 or more; their product is the vocabulary, as 8 * 5 * 5 * 5 = 1000.
    Its latents are not standardised: the few at a window's edges would push all others onto the middle value.
    """

    advice = "fewer or shorter quantizer.axes, or a lower optimizer.lr"

    def __init__(self, dim: int, axes: list[int], num_codebooks: int = 1):
        super().__init__()
        if not axes or min(axes) < 3:
            raise InputError(f"quantizer.axes={axes}: give 3 or more values on each, such as [8, 5, 5, 5]")
        self.vocab_size, self.channels = math.prod(axes), num_codebooks
        self.fsq = library.FSQ(axes, dim, num_codebooks, keep_num_codebooks_dim=True)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen, codes = self.fsq(x)
        return seen, codes, x.new_zeros(())

    def vectors(self) -> Tensor:
        return _projected(self.fsq.get_buffer("implicit_codebook"), self.channels, self.fsq.project_out)


class LFQ(Adapter):
    """Signs on log2(codebook_size) axes, kept in even use by an entropy loss (MAGVIT-v2, Yu et al. 2023, section 3.1).

    The loss looks at every entry for every latent: time and memory grow with codebook_size. On W processes the library
    weighs the evenness of use by 1 / W: it divides by their number what it has not summed over them.
    """

    advice = "a higher quantizer.entropy_weight, a smaller codebook or a lower optimizer.lr"

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int = 1,
        entropy_weight: float = 0.1,
        commitment_weight: float = 0.25,
    ):
        super().__init__(dim)
        if codebook_size < 2 or codebook_size & (codebook_size - 1):
            raise InputError(f"quantizer.codebook_size={codebook_size}: expected a power of 2, such as 1024")
        self.vocab_size, self.channels = codebook_size, num_codebooks
        self.lfq = library.LFQ(
            dim=dim,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
            keep_num_codebooks_dim=True,
            entropy_loss_weight=entropy_weight,
            commitment_loss_weight=commitment_weight,
        )

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.lfq(x)

    def vectors(self) -> Tensor:
        return _projected(self.lfq.get_buffer("codebook"), self.channels, self.lfq.project_out)


def _codebook(layer: nn.Module) -> ChunkedCodebook:
    """Ours, in a layer of the library's."""
    codebook = layer.get_submodule("_codebook")
    assert isinstance(codebook, ChunkedCodebook)
    return codebook


def _projected(entries: Tensor, num_codebooks: int, project_out: nn.Module) -> Tensor:
    """What entries [V, d] add to the latent [K, V, D] where codebooks lie side by side before one projection.

    The projection's bias is shared out among the codebooks.
    """
    apart = torch.zeros(num_codebooks, len(entries), num_codebooks, entries.shape[1], device=entries.device)
    for index in range(num_codebooks):
        apart[index, :, index] = entries
    bias = project_out(apart.new_zeros(num_codebooks * entries.shape[1]))
    return project_out(rearrange(apart, "k v i d -> k v (i d)")) - bias * (1 - 1 / num_codebooks)
