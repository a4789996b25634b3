"""Judge a few answers on import: the process that workers fork from then has built math-verify's tables.

Else the first answer of each worker would pay for them out of its own time, and on a slow machine be a time-out.
"""

import logging

from expo.verifier.answers import math_verify_verdict

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that its own limits are off

for answer, gold in (
    (r"\frac{1}{2}", "0.5"),
    ("x^2+1", "1+x^2"),
    (r"\sqrt{12}", r"2\sqrt{3}"),
    ("(1,2)", r"\left(1, \frac{4}{2}\right)"),
):
    math_verify_verdict(answer, gold)
math_verify_verdict.cache_clear()
