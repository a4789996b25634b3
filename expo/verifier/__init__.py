"""Verdicts. The answer is found (extraction), spelled alike (spelling), refused by its form (answer_forms), compared as
a kind (kinds: numbers and quantities in numbers), and last as algebra by math-verify (answers, in a worker).

`pool.Verifier.submit` does all of it for a completion; `verifier=` chooses the judge that compares (judges)."""
