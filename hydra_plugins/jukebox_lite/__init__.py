"""What Hydra has no plugin for: sweeps that outlive their jobs and their own end, jobs on Ray."""
