"""The page on which people compare episodes: ``marl label``."""
