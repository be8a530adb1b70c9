"""Learners: what improves the policy on a rollout and its rewards."""
