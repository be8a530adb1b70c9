"""Multi-agent MuJoCo: one robot shared among agents, and fleets of robots."""
