"""Third-party teams (PettingZoo, gymnasium) as batched environments, and ours as PettingZoo's."""
