"""Music as raw audio: hierarchical codecs, priors over their codes, and sampling (Jukebox, Dhariwal et al. 2020)."""
