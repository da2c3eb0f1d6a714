"""Rollout, replay and learner as plain classes, without Ray and without a training loop."""
