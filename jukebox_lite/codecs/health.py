"""How the entries of a level's codebooks fare while they are learnt: which are idle, which were revived."""

import torch
from torch import Tensor

from jukebox_lite.metrics.codecs import code_histogram
from jukebox_lite.nn.pooled import Pooled

DEAD_AFTER = 100  # training batches in a row that did not choose an entry


class Health(Pooled):
    """Counts how long each entry has lain idle. Saved with the weights: a resumed run logs what the whole would."""

    ages: Tensor  # [K, V] training batches since a latent last chose the entry, or since it was revived
    revived: Tensor  # [] entries revived in the last batch

    def __init__(self, num_codebooks: int, codebook_size: int):
        super().__init__()
        self.register_buffer("ages", torch.zeros(num_codebooks, codebook_size, dtype=torch.int32))
        self.register_buffer("revived", torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def note(self, codes: Tensor, revived: Tensor | None) -> None:
        """The codes [B, K, T] of a part of a training batch; and at its last, which entries [K, V] were revived."""
        found = self.pooled(code_histogram(codes, self.ages.shape[1]))
        if found is None:
            return
        (uses,) = found
        fresh = uses > 0 if revived is None else (uses > 0) | revived
        self.ages.copy_(torch.where(fresh, 0, self.ages + 1))
        self.revived.zero_() if revived is None else self.revived.copy_(revived.sum())

    def figures(self) -> dict[str, Tensor]:
        """Share of entries idle for DEAD_AFTER batches, number just revived, mean age in batches, each []."""
        ages = self.ages.float()
        return {"dead": (ages >= DEAD_AFTER).float().mean(), "revived": self.revived.float(), "age": ages.mean()}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: object) -> None:
        """As any module, but weights from elsewhere, which know no ages, are young."""
        state_dict.setdefault(f"{prefix}ages", torch.zeros_like(self.ages))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
