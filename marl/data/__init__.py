"""Data that crosses modules: collecting it, and the replay buffer of episodes."""
