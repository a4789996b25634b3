"""From completions to numbers: pass@k (pass_at_k), its intervals (intervals), both over problems (tally), and judges of
explanations (llm_judge)."""
