"""Codes as a transformer's features and back, knowing what the codec hears in each.

Jukebox learns a vector for every code from nothing. A codec already holds one: what its decoder is given. Codes that
sound alike have vectors that lie close, so a prior that sees them learns of all the neighbours of a code it meets.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jukebox_lite.nn.dense import Linear, linear

NO_CODE = -1  # where a codebook has nothing to say
EMBEDDING_SCALE = 0.02  # standard deviation of every embedding at the start
_AT_ONCE = 2048  # tokens whose logits a CPU makes at once


class CodeVectors(nn.Module):
    """One codebook's vectors [V, D], each feature at unit variance, with their squared lengths as one feature more.

    With it, a product with a vector can express any distance to a code. Kept with the weights; not learnt.
    """

    def __init__(self, vectors: Tensor):
        super().__init__()
        centred = vectors.float() - vectors.float().mean(0)
        lengths = centred.square().sum(-1, keepdim=True)
        features = torch.cat([centred, lengths - lengths.mean()], -1)
        self.features: Tensor
        self.register_buffer("features", features / features.std(0).clamp(min=1e-6))


class CodeEmbedding(nn.Module):
    """Codes [B, T] -> features [B, T, D]: a vector learnt per code, and a view of the codec's vector of it."""

    def __init__(self, num_codes: int, dim: int, vectors: CodeVectors | None):
        super().__init__()
        self.table = nn.Embedding(num_codes, dim)
        nn.init.normal_(self.table.weight, std=EMBEDDING_SCALE)
        self.vectors = vectors
        if vectors is not None:
            self.view = Linear(vectors.features.shape[1], dim, bias=False)
            nn.init.normal_(self.view.weight, std=EMBEDDING_SCALE)

    def forward(self, codes: Tensor) -> Tensor:
        learnt = self.table(codes)
        return learnt if self.vectors is None else learnt + self.view(F.embedding(codes, self.vectors.features))


class CodeHead(nn.Module):
    """Features [B, T, D] -> logits [B, T, V]: a weight learnt per code, and a point among the codec's vectors.

    Starts at the chance line: all logits are 0.
    """

    def __init__(self, dim: int, num_codes: int, vectors: CodeVectors | None):
        super().__init__()
        self.table = Linear(dim, num_codes, bias=False)
        nn.init.zeros_(self.table.weight)
        self.vectors = vectors
        if vectors is not None:
            self.point = Linear(dim, vectors.features.shape[1])
            nn.init.zeros_(self.point.weight)
            nn.init.zeros_(self.point.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.table(x)
        return logits if self.vectors is None else logits + linear(self.point(x), self.vectors.features.to(x.dtype))


def surprise(tokens: Tensor, x: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Nats of each of the tokens [B, T] by what a head, [..., D] -> logits [..., V], makes of features x [B, T, D].

    On a CPU the logits, by far the largest tensors of a training step, are made and left a part at a time: of a size
    at which the system would else hand out, and clear, fresh memory for each.
    """
    size = _AT_ONCE if x.device.type == "cpu" else tokens.numel()
    parts = zip(x.flatten(0, 1).split(size), tokens.flatten().split(size), strict=True)
    nats = [F.cross_entropy(head(features).float(), told, reduction="none") for features, told in parts]
    return torch.cat(nats).reshape(tokens.shape)


def code_vectors(vectors: Tensor | None, num_codebooks: int) -> list[CodeVectors | None]:
    """A level's vectors [K, V, D] by codebook; None for each where the codec has none."""
    return [None] * num_codebooks if vectors is None else [CodeVectors(each) for each in vectors]


def embed_all(embeddings: nn.ModuleList, codes: Tensor) -> Tensor:
    """Codes [B, K, T] -> [B, T, D], summed over the codebooks; NO_CODE adds nothing."""
    present = rearrange(codes != NO_CODE, "b k t -> k b t 1")
    rows = rearrange(codes.clamp(min=0), "b k t -> k b t")
    return torch.stack([embed(row) * here for embed, row, here in zip(embeddings, rows, present, strict=True)]).sum(0)
