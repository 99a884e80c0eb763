"""A codebook learnt by moving average, with a nearest-entry search of bounded memory (Jukebox, section 3.1)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from loguru import logger
from torch import Tensor, nn
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook, ema_inplace

from jukebox_lite.nn.convolution import convolve
from jukebox_lite.nn.pooled import Pooled, from_first_process

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


class ChunkedCodebook(Codebook, Pooled):
    """vector-quantize-pytorch's codebook without its distance and one-hot matrices.

    The library materialises [N, V] distances, one-hots and two products with them; here the search is one matrix
    product a chunk, and the averages are index sums: equal codes and equal averages in a fraction of the time.
    An entry is dead when its moving average of use falls below `dead_below` of an even share; the share follows
    the batch, so that a coarse level with few vectors a batch is judged as a fine one is.

    It learns once a step, from all parts of its batch: their counts and sums, and for the v-th entry, where it is dead,
    a latent of part v modulo their number. Only the start is of the first part alone, as the others then have to be
    given codes already: more devices, or more to accumulate, give k-means no more to look at.
    """

    embed: Tensor  # [1, V, D] the entries
    embed_avg: Tensor  # [1, V, D] moving sum of the latents that each entry was nearest to
    cluster_size: Tensor  # [1, V] moving count of them
    revived: Tensor  # [1, V] which were dead, and set to latents of the last step's batch

    def __init__(
        self, dim: int, codebook_size: int, decay: float, dead_below: float, kmeans_init: bool, chunk: int = 2048
    ):
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
                self.start(latents)
            codes = self.nearest(latents)
            entries = self.embed[0][codes]
            if self.training and not freeze_codebook:
                self.learn(latents, codes)
        return entries.view_as(x), codes.view(x.shape[:-1]), x.new_empty(0)

    def start(self, latents: Tensor) -> None:
        """Sets entries that nothing has set yet by k-means of the first latents [N, D], where that is asked for."""
        if self.started:
            return
        if self.first:
            self.init_embed_(latents[None])
        from_first_process(self.embed.data, self.embed_avg, self.cluster_size)
        self.get_buffer("initted").fill_(True)
        self.started = True

    def learn(self, latents: Tensor, codes: Tensor) -> None:
        """Counts this part of a step's batch; at its last, moves the averages, sets the entries, revives the dead."""
        sums = torch.zeros_like(self.embed_avg[0]).index_add_(0, codes, latents)
        if found := self.pooled(self.uses(codes), self.candidates(latents), sums):
            counts, candidates, sums = found
            ema_inplace(self.cluster_size, counts[None], self.decay)
            ema_inplace(self.embed_avg, sums[None], self.decay)
            self.update_ema()
            self.revive(candidates, counts.sum() / self.codebook_size)

    def uses(self, codes: Tensor) -> Tensor:
        """How often codes [N] name each entry: [V]"""
        uses = torch.zeros_like(self.cluster_size[0])
        return uses.index_add_(0, codes, torch.ones_like(codes, dtype=uses.dtype))

    def candidates(self, latents: Tensor) -> Tensor:
        """Random ones of latents [N, D] for the entries [V, D] whose turn it is to have one from this part."""
        return self.dealt(self.replace_sample_fn(latents[None], self.codebook_size)[0])

    def revive(self, candidates: Tensor, even_share: Tensor) -> None:
        """Sets dead entries to their candidates [V, D], as if they had had an even share of the step's use."""
        self.revived.copy_(self.cluster_size < self.dead_below * even_share)
        dead = self.revived[..., None]
        self.embed.copy_(torch.where(dead, candidates, self.embed))
        self.embed_avg.copy_(torch.where(dead, candidates * even_share, self.embed_avg))
        self.cluster_size.copy_(torch.where(self.revived, even_share, self.cluster_size))


class Standardize(Pooled):
    """Latents at mean 0 and variance 1 in each feature, by averages that follow the steps before.

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
        """Latents [B, T, D] -> [B, T, D]; in the first step by their own mean and variance."""
        known, mean, variance = self.told > 0, torch.zeros_like(self.mean), torch.ones_like(self.variance)
        if self.training:
            latents = rearrange(x.detach(), "b t d -> (b t) d")
            mean, variance = latents.mean(0), latents.var(0, unbiased=False)
        standard = x - torch.where(known, self.mean / self.told, mean)
        standard = standard * torch.where(known, self.variance / self.told, variance).clamp(min=1e-8).rsqrt()
        if self.training:
            self.learn(mean, variance)
        return standard

    @torch.no_grad()
    def learn(self, mean: Tensor, variance: Tensor) -> None:
        """Counts the mean and variance [D] of this part of a step's batch; at its last, moves the averages."""
        if found := self.pooled(mean, variance):
            self.mean.lerp_(found[0] / self.parts, 1 - self.decay)
            self.variance.lerp_(found[1] / self.parts, 1 - self.decay)
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
                self.start(latents)
            codes = nearest(F.normalize(latents, dim=-1), F.normalize(self.embed[0], dim=-1), self.chunk)
        entries = F.embedding(codes, self.embed[0])
        if learns:
            self.learn(latents, codes)
        return entries.view_as(x), codes.view(x.shape[:-1]), x.new_empty(0)

    @torch.no_grad()
    def learn(self, latents: Tensor, codes: Tensor) -> None:
        """Counts the uses, and revives the dead; the rest is the optimizer's."""
        if found := self.pooled(self.uses(codes), self.candidates(latents)):
            counts, candidates = found
            ema_inplace(self.cluster_size, counts[None], self.decay)
            self.revive(candidates, counts.sum() / self.codebook_size)
