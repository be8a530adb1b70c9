"""Third-party teams that step one copy at a time: PettingZoo, gymnasium, in worker processes."""
