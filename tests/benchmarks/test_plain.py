"""What `benchmarks.plain` reads and judges by itself."""

import numpy as np

from benchmarks import plain


def test_answers_are_those_of_the_last_box_and_judged_by_number(gsm8k_file):
    assert plain.in_box(r"\boxed{3} and \boxed{\text{no}}") == r"\text{no}"
    assert plain.in_box("The answer is 3.") == ""
    assert plain.sums("12+30: sum?", " 42 ")
    assert not plain.sums("12+30: sum?", "42,")
    judge = plain.gsm8k(str(gsm8k_file))
    question, right = next(iter(judge.__closure__[0].cell_contents.items()))
    assert judge(question, f"{right}.0")
    assert not judge(question, f"{right}1")
    assert not judge(question, "")


def test_samples_of_a_problem_are_one_value():
    rows = [{"problem": p} for p in "aabb"]
    assert np.array_equal(plain.means(rows, [0.0, 1.0, 1.0, 1.0]), [0.5, 1.0])
