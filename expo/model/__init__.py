"""The policy: loaded and copied (policy), prompted (prompts), scored token by token, its entropy too (scoring)."""
