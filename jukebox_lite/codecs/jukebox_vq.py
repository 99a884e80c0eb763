"""Jukebox's own codebook: moving averages and random restarts (Jukebox, section 3.1)."""

import torch
from einops import rearrange
from torch import Tensor

from jukebox_lite.codecs.codebook import nearest
from jukebox_lite.codecs.quantizers import Quantized, Quantizer
from jukebox_lite.nn.pooled import Pooled, from_first_process


class JukeboxVQ(Quantizer, Pooled):
    """One codebook that learns as OpenAI's does, step for step; `VQ` is the same idea, kinder to small batches.

    An entry whose moving count of use is under `dead_below` is set to a random latent of the batch, at every step until
    the count has grown again; its averages are left alone, so that it then becomes what they say. Of several processes
    OpenAI draws all latents from the first; here each gives those of its share of the entries.
    """

    entries: Tensor  # [V, D]
    sums: Tensor  # [V, D] moving sum of the latents that each entry was nearest to
    counts: Tensor  # [V] moving count of them; zero before the first batch

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float = 0.99,
        commitment_weight: float = 0.02,
        dead_below: float = 1.0,
    ):
        super().__init__()
        self.vocab_size, self.channels = codebook_size, 1
        self.decay, self.commitment_weight, self.dead_below = decay, commitment_weight, dead_below
        self.started = False  # whether the entries are known to be set; `counts` says so on the device
        self.register_buffer("entries", torch.zeros(codebook_size, dim))
        self.register_buffer("sums", torch.zeros(codebook_size, dim))
        self.register_buffer("counts", torch.zeros(codebook_size))

    def forward(self, latent: Tensor) -> Quantized:
        revived = None
        with torch.autocast(latent.device.type, enabled=False):
            flat = rearrange(latent.float(), "b d t -> (b t) d")
            with torch.no_grad():
                if self.training:
                    self.start(flat)
                codes = nearest(flat, self.entries)
                chosen = self.entries[codes]
                if self.training:
                    revived = self.learn(flat, codes, self.draw(flat))
            loss = self.commitment_weight * (flat - chosen).square().mean()
            learnt = self.training or latent.requires_grad  # what is before a frozen codebook learns all the same
            seen = flat + (chosen - flat).detach() if learnt else chosen
        seen = rearrange(seen, "(b t) d -> b d t", b=len(latent))
        return Quantized(seen, rearrange(codes, "(b t) -> b 1 t", b=len(latent)), loss, revived)

    def decode(self, codes: Tensor) -> Tensor:
        return rearrange(self.entries[codes], "b 1 t d -> b d t")

    def vectors(self) -> Tensor:
        return rearrange(self.entries, "v d -> 1 v d")

    def start(self, latents: Tensor) -> None:
        """Sets entries that nothing has set yet to random latents [N, D] of the first batch, each as if used once."""
        if self.started:
            return
        if self.first and not self.counts.any():
            self.set_entries(self.draw(latents))
        from_first_process(self.entries, self.sums, self.counts)
        self.started = True

    def set_entries(self, entries: Tensor, use: float = 1.0) -> None:
        """Takes entries [V, D], the averages standing as if each had a moving count of `use`."""
        self.entries.copy_(entries)
        self.sums.copy_(entries * use)
        self.counts.fill_(use)

    def draw(self, latents: Tensor) -> Tensor:
        """Random rows [V, D] of latents [N, D], none twice; too few are repeated with a little noise."""
        if (repeats := -(-len(self.entries) // len(latents))) > 1:
            latents = latents.repeat(repeats, 1)
            latents = latents + torch.randn_like(latents) * 0.01 / latents.shape[1] ** 0.5
        return latents[torch.randperm(len(latents), device=latents.device)[: len(self.entries)]]

    def learn(self, latents: Tensor, codes: Tensor, restarts: Tensor) -> Tensor | None:
        """Counts latents [N, D] and their codes [N]; at the last part of a step's batch, moves the averages towards it.

        Dead entries then become rows of the parts' restarts [V, D]. Returns which were dead [1, V], at the last part.
        """
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latents)
        counts = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(latents[:, 0]))
        found = self.pooled(sums, counts, self.dealt(restarts))
        if found is None:
            return None
        sums, counts, restarts = found
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        dead = rearrange(self.counts < self.dead_below, "v -> v 1")
        self.entries.copy_(torch.where(dead, restarts, self.sums / rearrange(self.counts, "v -> v 1")))
        return rearrange(dead, "v 1 -> 1 v")
