"""StarCraft II itself, by SMACv2."""
