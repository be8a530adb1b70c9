"""What a run's labeller answered, and how far it can be trusted: ``marl labels``."""
