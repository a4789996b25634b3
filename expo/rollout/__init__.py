"""Engines: from requests to completions. They hold the policy's weights (transformers_engine), a copy that `sync` sends
and verifies (vllm_engine), or a gathered one of shares (sharded)."""
