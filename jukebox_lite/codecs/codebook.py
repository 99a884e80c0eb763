"""A codebook learnt by moving average, with a nearest-entry search of bounded memory (Jukebox, section 3.1)."""

import torch
import torch.distributed as dist
from einops import rearrange
from loguru import logger
from torch import Tensor
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook, ema_inplace, sample_vectors_distributed

# It warns where a k-means start has fewer vectors than entries; entries that start as duplicates die and are revived.
logger.disable("vector_quantize_pytorch.vector_quantize_pytorch")


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

    def __init__(
        self, dim: int, codebook_size: int, decay: float, dead_below: float, kmeans_init: bool, chunk: int = 4096
    ):
        # use_ddp is decided when the first batch arrives: the model may be built before the processes meet
        super().__init__(dim, codebook_size, kmeans_init=kmeans_init, decay=decay, threshold_ema_dead_code=0)
        self.dead_below, self.chunk = dead_below, chunk
        self.started = False  # whether the entries are known to be set; the library's own mark is on the device

    def nearest(self, latents: Tensor) -> Tensor:
        """Indices [N] of the entries nearest to `latents` [N, D]."""
        entries = self.embed[0]
        half_square = entries.square().sum(-1) / 2
        parts = [torch.addmm(half_square, part, entries.T, alpha=-1).argmin(-1) for part in latents.split(self.chunk)]
        return torch.cat(parts)

    def forward(self, x: Tensor, freeze_codebook: bool = False, **_: object) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, T, D] -> entries [B, T, D], codes [B, T] and an empty tensor where the library has distances."""
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            latents = rearrange(x.float(), "b t d -> (b t) d")
            if self.training and not freeze_codebook:
                self.share_between_processes()
                if not self.started:
                    self.init_embed_(latents[None])
                    self.started = True
            codes = self.nearest(latents)
            entries = self.embed[0][codes]
            if self.training and not freeze_codebook:
                self.learn(latents, codes)
        return entries.view_as(x), codes.view(x.shape[:-1]), x.new_empty(0)

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
