"""A codebook learnt by moving average, with a nearest-entry search of bounded memory (Jukebox, section 3.1)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from loguru import logger
from torch import Tensor, nn
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook, ema_inplace, sample_vectors_distributed

from jukebox_lite.nn.residual import convolve

# It warns where a k-means start has fewer vectors than entries; entries that start as duplicates die and are revived.
logger.disable("vector_quantize_pytorch.vector_quantize_pytorch")


def nearest(latents: Tensor, entries: Tensor, chunk: int = 2048) -> Tensor:
    """Indices [N] of the entries [V, D] nearest to `latents` [N, D], by chunks of one matrix product each."""
    half_square = entries.square().sum(-1) / 2
    return torch.cat([_nearness(part, entries, half_square).argmax(-1) for part in latents.split(chunk)])


def _nearness(latents: Tensor, entries: Tensor, half_square: Tensor) -> Tensor:
    """How near each entry is to `latents` [N, D], the greatest being the nearest: x . e - |e|^2 / 2, [N, V]."""
    if latents.device.type == "cpu":  # twice as fast as the product
        return convolve(latents, rearrange(entries, "v d -> v d 1 1"), -half_square)
    return torch.addmm(half_square, latents, entries.T, beta=-1)


class ChunkedCodebook(Codebook):
    """vector-quantize-pytorch's codebook without its distance and one-hot matrices.

    The library materialises [N, V] distances, one-hots and two products with them; here the search is one matrix
    product a chunk, and the averages are index sums: equal codes and equal averages in a fraction of the time.
    An entry is dead when its moving average of use falls below `dead_below` of an even share; the share follows
    the batch, so that a coarse level with few vectors a batch is judged as a fine one is.
    """

    embed: Tensor  # [1, V, D] the entries
    embed_avg: Tensor  # [1, V, D] moving sum of the latents that each entry was nearest to
    cluster_size: Tensor  # [1, V] moving count of them
    revived: Tensor  # [1, V] which were dead, and set to latents of the last batch

    def __init__(
        self, dim: int, codebook_size: int, decay: float, dead_below: float, kmeans_init: bool, chunk: int = 2048
    ):
        # use_ddp is decided when the first batch arrives: the model may be built before the processes meet
        super().__init__(dim, codebook_size, kmeans_init=kmeans_init, decay=decay, threshold_ema_dead_code=0)
        self.register_buffer("revived", torch.zeros(1, codebook_size, dtype=torch.bool), persistent=False)
        self.dead_below, self.chunk = dead_below, chunk
        self.started = False  # whether the entries are known to be set; the library's own mark is on the device

    def nearest(self, latents: Tensor) -> Tensor:
        """Indices [N] of the entries nearest to `latents` [N, D]."""
        return nearest(latents, self.embed[0], self.chunk)

    def forward(self, x: Tensor, freeze_codebook: bool = False, **_: object) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, T, D] -> entries [B, T, D], codes [B, T] and an empty tensor where the library has distances."""
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            latents = rearrange(x.float(), "b t d -> (b t) d")
            if self.training and not freeze_codebook:
                self.share_between_processes()
                self.start(latents)
            codes = self.nearest(latents)
            entries = self.embed[0][codes]
            if self.training and not freeze_codebook:
                self.learn(latents, codes)
        return entries.view_as(x), codes.view(x.shape[:-1]), x.new_empty(0)

    def start(self, latents: Tensor) -> None:
        """Sets entries that nothing has set yet by k-means of the first latents [N, D], where that is asked for."""
        if not self.started:
            self.init_embed_(latents[None])
            self.started = True

    def learn(self, latents: Tensor, codes: Tensor) -> None:
        """Moves the averages towards this batch, sets the entries to them, and revives the dead."""
        counts = torch.zeros_like(self.cluster_size[0]).index_add_(0, codes, torch.ones_like(latents[:, 0]))[None]
        sums = torch.zeros_like(self.embed_avg[0]).index_add_(0, codes, latents)[None]
        self.all_reduce_fn(counts)
        self.all_reduce_fn(sums)
        ema_inplace(self.cluster_size, counts, self.decay)
        ema_inplace(self.embed_avg, sums, self.decay)
        self.update_ema()
        even_share = counts.sum() / self.codebook_size
        self.revive(latents, self.cluster_size < self.dead_below * even_share, even_share)

    def revive(self, latents: Tensor, dead: Tensor, even_share: Tensor) -> None:
        """Sets the `dead` entries [1, V] to random latents of this batch, as if they had had an even share of use."""
        self.revived.copy_(dead)
        candidates = self.replace_sample_fn(latents[None], self.codebook_size)
        dead = dead[..., None]
        self.embed.copy_(torch.where(dead, candidates, self.embed))
        self.embed_avg.copy_(torch.where(dead, candidates * even_share, self.embed_avg))
        self.cluster_size.copy_(torch.where(dead[..., 0], even_share, self.cluster_size))

    def share_between_processes(self) -> None:
        """Counts, sums and samples are those of all processes, where there are several."""
        if dist.is_available() and dist.is_initialized():
            self.all_reduce_fn = self.kmeans_all_reduce_fn = dist.all_reduce
            self.sample_fn = self.replace_sample_fn = sample_vectors_distributed


class Standardize(nn.Module):
    """Latents at mean 0 and variance 1 in each feature, by averages that follow the batches.

    A new encoder writes nearly the same vector at every step of a coarse level. Entries that start from the latents
    do not mind; for those that do not, nearly all latents would have the same code, and no gradient would part them.
    """

    mean: Tensor  # [D] moving average of the batches' means, short of it by the share `told`
    variance: Tensor  # [D] of their variances, likewise
    told: Tensor  # [] from 0 towards 1

    def __init__(self, dim: int, decay: float = 0.9):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.zeros(dim))
        self.register_buffer("told", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Latents [B, T, D] -> [B, T, D]"""
        if self.training:
            self.learn(rearrange(x.detach(), "b t d -> (b t) d"))
        known = self.told > 0
        mean = torch.where(known, self.mean / self.told, 0.0)
        variance = torch.where(known, self.variance / self.told, 1.0)
        return (x - mean) * variance.clamp(min=1e-8).rsqrt()

    @torch.no_grad()
    def learn(self, latents: Tensor) -> None:
        """Moves the averages towards latents [N, D], of all processes where there are several."""
        moments = torch.stack([latents.mean(0), latents.var(0, unbiased=False)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(moments)
            moments /= dist.get_world_size()
        self.mean.lerp_(moments[0], 1 - self.decay)
        self.variance.lerp_(moments[1], 1 - self.decay)
        self.told.lerp_(torch.ones_like(self.told), 1 - self.decay)


class DirectionCodebook(ChunkedCodebook):
    """Entries learnt by gradient and searched by direction alone; their lengths are theirs to learn (DAC, section 3.2).

    The library has normalised entries only where they follow a moving average. They start and are revived as its
    other kind is; `decay` is that of the counts of use.
    """

    def __init__(self, dim: int, codebook_size: int, decay: float, dead_below: float, kmeans_init: bool):
        super().__init__(dim, codebook_size, decay, dead_below, kmeans_init)
        entries = self.embed
        del self.embed
        self.embed = nn.Parameter(entries if kmeans_init else torch.randn_like(entries))

    def forward(self, x: Tensor, freeze_codebook: bool = False, **_: object) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, T, D] -> entries [B, T, D], codes [B, T] and an empty tensor where the library has distances."""
        latents = rearrange(x.detach(), "b t d -> (b t) d")
        learns = self.training and not freeze_codebook
        with torch.no_grad():
            if learns:
                self.share_between_processes()
                self.start(latents)
            codes = nearest(F.normalize(latents, dim=-1), F.normalize(self.embed[0], dim=-1), self.chunk)
        entries = F.embedding(codes, self.embed[0])
        if learns:
            self.learn(latents, codes)
        return entries.view_as(x), codes.view(x.shape[:-1]), x.new_empty(0)

    @torch.no_grad()
    def learn(self, latents: Tensor, codes: Tensor) -> None:
        """Counts the uses, and revives the dead; the rest is the optimizer's."""
        counts = torch.zeros_like(self.cluster_size[0]).index_add_(0, codes, torch.ones_like(latents[:, 0]))[None]
        self.all_reduce_fn(counts)
        ema_inplace(self.cluster_size, counts, self.decay)
        even_share = counts.sum() / self.codebook_size
        self.revive(latents, self.cluster_size < self.dead_below * even_share, even_share)
