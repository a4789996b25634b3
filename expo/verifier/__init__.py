"""Verdicts. The answer is found (extraction), spelled alike (spelling), refused by its form (answer_forms), compared as
a kind (kinds: numbers and quantities in numbers), and last as algebra by math-verify (answers, in a worker)."""
