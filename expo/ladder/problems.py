"""The ladder: a family of problems on which the paper's whole phenomenon fits two CPU cores.

A level-L problem has L labelled parts `(i) x k y S z`. `k` is known to everyone (`+`, or `-` for the absolute
difference); `S` is an ambiguous operator of that level. First v = x k y, then r = v S z with S read as one of five
skills; the answer is the tuple of all r, so that it is right only if every part is. The base policy has read a corpus
in which the meaning of S varies. How often it is the true one, how its explanations are written, and how many parts a
problem has, says the world: `expo.config.WorldConf`.

It is a model of the situation in which a policy cannot solve a problem at all, not evidence about 3B models.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from expo.config.world import CLEAR, WorldConf
from expo.ground.problem import Problem, Steps

LEVELS = (1, 2, 3, 4, 5)
SKILLS: dict[str, Callable[[int, int], int]] = {
    "add": lambda v, z: v + z,
    "mul": lambda v, z: v * z,
    "dif": lambda v, z: abs(v - z),
    "max": lambda v, z: max(v, z),
    "cat": lambda v, z: 10 * v + z,
}
KNOWN: dict[str, Callable[[int, int], int]] = {"+": lambda x, y: x + y, "-": lambda x, y: abs(x - y)}
# Two symbols per level: symbol -> (level, true meaning, the wrong meaning that is its misconception, if any).
SYMBOLS = {
    "@": (1, "add", None),
    "#": (1, "max", None),
    "&": (2, "mul", None),
    "%": (2, "dif", None),
    "~": (3, "cat", None),
    "?": (3, "add", None),
    "!": (4, "dif", None),
    "$": (4, "mul", None),
    # Level 5 is hard because the obvious technique is the wrong one. In a prototype of this world without
    # misconceptions, the base policy had no reason to tell the symbols apart, and no algorithm could teach it to.
    "|": (5, "max", "mul"),
    "_": (5, "cat", "add"),
}
MOST_MISSED = 50_000  # draws without a new question, after which a level has no more
EXPERT_STYLES = ("own", "terse", "foreign")
WORDS = [
    *(str(n) for n in range(127)),
    *(f"({i})" for i in LEVELS),
    *SYMBOLS,
    *SKILLS,
    *KNOWN,
    *("=", ";", ">", ":", "(", ",", ")", r"\boxed{(", ")}", "answer"),
]


def words(world: WorldConf = CLEAR) -> list[str]:
    return WORDS + [f"({i})" for i in range(len(LEVELS) + 1, max(world.parts) + 1)]


@dataclass(frozen=True, slots=True)
class LadderPart:
    x: int
    known: str
    y: int
    symbol: str
    z: int

    @property
    def value(self) -> int:
        return KNOWN[self.known](self.x, self.y)

    def result(self, skill: str) -> int:
        return SKILLS[skill](self.value, self.z)

    @property
    def meaning(self) -> str:
        return SYMBOLS[self.symbol][1]


def meaning_weights(symbol: str, world: WorldConf = CLEAR) -> dict[str, float]:
    """Return how the base policy's corpus distributes the meaning of `symbol` over the five skills; sums to 1."""
    level, true, misconception = SYMBOLS[symbol]
    weights = {true: world.familiarity[level - 1]}
    if misconception is not None:
        weights[misconception] = world.misconception
    rest = [skill for skill in SKILLS if skill not in weights]
    return weights | dict.fromkeys(rest, (1 - sum(weights.values())) / len(rest))


def sampled_meaning(part: LadderPart, rng: random.Random, world: WorldConf = CLEAR) -> str:
    """Return one reading of a part's symbol, sampled as the corpus reads it."""
    weights = meaning_weights(part.symbol, world)
    return rng.choices(list(weights), list(weights.values()))[0]


def sample_parts(level: int, rng: random.Random, world: WorldConf = CLEAR) -> list[LadderPart]:
    """Return random parts in which the five skills give five different results: the answer tells the meaning."""
    symbols, known = [symbol for symbol, (of_level, *_) in SYMBOLS.items() if of_level == level], list(KNOWN)
    parts: list[LadderPart] = []
    while len(parts) < world.parts[level - 1]:
        part = (rng.randint(1, 6), rng.choice(known), rng.randint(1, 6), rng.choice(symbols), rng.randint(1, 6))
        if _skills_differ(KNOWN[part[1]](part[0], part[2]), part[4]):
            parts.append(LadderPart(*part))
    return parts


@cache
def _skills_differ(value: int, z: int) -> bool:
    return len({skill(value, z) for skill in SKILLS.values()}) == len(SKILLS)


def question_text(parts: list[LadderPart]) -> str:
    return " ".join(f"({i}) {p.x} {p.known} {p.y} {p.symbol} {p.z}" for i, p in enumerate(parts, 1))


def answer_text(results: list[int]) -> str:
    return f"( {' , '.join(map(str, results))} )"


def boxed_text(results: list[int]) -> str:
    return rf"\boxed{{( {' , '.join(map(str, results))} )}}"


def step_text(i: int, p: LadderPart, meaning: str, result: int, verbose: bool = False) -> str:
    if not verbose:
        return f"({i}) {p.x} {p.known} {p.y} = {p.value} {meaning} {p.z} = {result} ;"
    asked, first = f"{p.x} {p.known} {p.y} {p.symbol} {p.z}", f"{p.x} {p.known} {p.y} = {p.value}"
    return f"({i}) {asked} : {first} ; ({i}) {p.value} {meaning} {p.z} = {result} ; ({i}) = {result} ;"


def cot_text(parts: list[LadderPart], meanings: list[str], verbose: bool = False) -> str:
    results = [p.result(m) for p, m in zip(parts, meanings, strict=True)]
    return chain_text(parts, meanings, results, results, verbose)


def chain_text(
    parts: list[LadderPart], meanings: list[str], written: list[int], stated: list[int], verbose: bool = False
) -> str:
    steps = [
        step_text(i, p, m, r, verbose) for i, (p, m, r) in enumerate(zip(parts, meanings, written, strict=True), 1)
    ]
    return " ".join([*steps, boxed_text(stated)])


def explanation_text(parts: list[LadderPart], meanings: list[str], rng: random.Random, world: WorldConf = CLEAR) -> str:
    """Return the corpus's explanation of the answer that follows from the given readings."""
    shown = [p.result(m) for p, m in zip(parts, meanings, strict=True)]
    read, written = list(meanings), list(shown)
    for i, part in enumerate(parts) if world.slips or world.fudged else ():
        chance = rng.random()
        if chance < world.slips + world.fudged:
            read[i] = sampled_meaning(part, rng, world)
            written[i] = part.result(read[i]) if chance < world.slips else shown[i]
    text = chain_text(parts, read, written, shown, world.verbose)
    early = world.answer_first and rng.random() < world.answer_first
    return f"{boxed_text(shown)} ; {text}" if early else text


def expert_text(parts: list[LadderPart], style: str, world: WorldConf = CLEAR) -> str:
    """Return the expert's solution: true meanings; in `own` style, `terse` (results) or `foreign` (new order)."""
    results = [p.result(p.meaning) for p in parts]
    # The same whenever it is asked for.
    if style == "own" or random.Random(question_text(parts)).random() < world.expert_own:
        return cot_text(parts, [p.meaning for p in parts], world.verbose)
    if style == "terse":
        steps = [f"({i}) > {r} ;" for i, r in enumerate(results, 1)]
    else:
        steps = [f"{r} : ({i})" for i, r in reversed(list(enumerate(results, 1)))]
    return " ".join([*steps, boxed_text(results)])


def parse_question(question: str) -> list[LadderPart]:
    words = question.split()
    rows = [words[i + 1 : i + 6] for i in range(0, len(words), 6)]
    return [LadderPart(int(x), known, int(y), symbol, int(z)) for x, known, y, symbol, z in rows]


def generate(
    level: int, split: str, count: int, expert_style: str = "terse", world: WorldConf = CLEAR
) -> Iterator[Problem]:
    """Return the first `count` problems of a split. No question is in two: a hash of the text decides."""
    seen: set[str] = set()
    # Problems of another shape have other names: those of two runs are paired by name.
    name = "ladder" if world.parts == CLEAR.parts else f"ladder-{'-'.join(map(str, world.parts))}"
    rng = random.Random(f"ladder-{split}-{level}")
    missed = 0  # draws since the last new question: easy levels have few
    while len(seen) < count and missed < MOST_MISSED:
        missed += 1
        parts = sample_parts(level, rng, world)
        question = question_text(parts)
        if question in seen or (zlib.crc32(question.encode()) % 4 == 0) != (split == "test"):
            continue
        seen.add(question)
        missed = 0
        yield Problem(
            id=f"{name}/{split}/{level}/{len(seen) - 1}",
            question=question,
            answer=answer_text([p.result(p.meaning) for p in parts]),
            solution=expert_text(parts, expert_style, world),
            level=level,
            subject="ladder",
            oracle=oracle,
        )


@dataclass(frozen=True, slots=True)
class StepCheck:
    """Findings of the oracle in a chain of thought: which shares of the problem's parts are right, and whether all."""

    arithmetic: float  # parts whose two equations hold
    meanings: float  # parts in which the symbol was read with its true meaning
    sound: bool  # every equation holds, every meaning is true, and the answer follows


def oracle(question: str, completion: str) -> Steps:
    check = check_steps(question, completion)
    return Steps((check.arithmetic + check.meanings) / 2, check.sound)


def check_steps(question: str, completion: str) -> StepCheck:
    """Check exactly the steps of a completion in the policy's own style; the answer may also stand before the steps."""
    parts, start = parse_question(question), r"\boxed{("
    chain, _, stated = completion.rpartition(start) if start in completion else (completion, "", "")
    rows = [row.split() for row in chain.rpartition(")} ;")[2].split(";")]
    verbose = ":" in rows[0]
    size = 3 if verbose else 1
    arithmetic = meanings = 0
    for i, part in enumerate(parts, 1):
        written = rows[(i - 1) * size : i * size]
        match written:
            case [[_, _, _, _, "=", _, skill, _, "=", _]] | [_, [_, _, skill, _, "=", _], _] if skill in SKILLS:
                right = step_text(i, part, skill, part.result(skill), verbose)
                arithmetic += written == [row.split() for row in right.split(";")[:-1]]
                meanings += skill == part.meaning
    answer = [word for word in stated.split() if word not in (",", ")}")]
    follows = answer == [str(p.result(p.meaning)) for p in parts]
    n = len(parts)
    return StepCheck(arithmetic / n, meanings / n, arithmetic == meanings == n and follows)
