"""OpenAI's Jukebox checkpoints as our models, key by key (Jukebox, section 3; github.com/openai/jukebox)."""

from jukebox_lite.interop.openai.priors import logits, prior, read_prior, window
from jukebox_lite.interop.openai.vqvae import codec, read

__all__ = ["codec", "logits", "prior", "read", "read_prior", "window"]
