"""Multi-agent MuJoCo: one robot shared among agents, and fleets of robots."""

import farama_notifications

# gymnasium-robotics, imported later, prints a notice about hand tasks, which are none of ours.
farama_notifications.notifications.pop("gymnasium_robotics", None)
