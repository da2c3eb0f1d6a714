"""The training loop: coordinator, rollout sources, buffer, pair ledger, step metrics, evaluation."""
