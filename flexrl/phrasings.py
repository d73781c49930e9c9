"""The ways to ask for a skill in words: a family to learn from, and one that is held out (other verbs, typing errors)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class Family:
    """Phrases for one skill; the first is what it is called where nobody chooses."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The first phrase."""
        return self.train[0]


def with_copies(phrases: Sequence[str], num_copies: int) -> list[str]:
    """Each phrase, and so many distorted copies behind it, the same ones for the same phrases.

    A copy that comes out as a phrase that is held out, of whatever skill, is drawn again (unless a phrase of those is copied).
    """
    rng = np.random.default_rng(0)
    again = np.random.default_rng(1)  # of its own, so that the copies which may stay are the same with and without it
    texts = []
    for phrase in phrases:
        for i in range(1 + num_copies):
            text = phrase if i == 0 else distorted(phrase, rng)
            while text in HELD_OUT and phrase not in HELD_OUT:
                text = distorted(phrase, again)
            texts.append(text)
    return texts


def distorted(phrase: str, rng: np.random.Generator) -> str:
    """The phrase with typing errors in some words, and often one word that nobody knows, or none in its place."""
    words = phrase.split()
    lost = int(rng.integers(len(words))) if len(words) > 1 and rng.random() < 0.5 else None
    if lost is not None:
        unknown = "".join(rng.choice(LETTERS, size=int(rng.integers(3, 8))))
        words[lost : lost + 1] = [unknown] if rng.random() < 0.7 else []
    return " ".join(_mistyped(word, rng) if rng.random() < 0.2 else word for word in words)


def _mistyped(word: str, rng: np.random.Generator) -> str:
    """Two letters exchanged, one left out, or one typed twice."""
    if len(word) < 3:
        return word
    i = int(rng.integers(len(word) - 1))
    return (word[:i] + word[i + 1] + word[i] + word[i + 2 :], word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:])[
        int(rng.integers(3))
    ]


NONE = Family(train=("",))
WALK_FORWARD = Family(
    train=(
        "walk forward",
        "go straight ahead",
        "walk ahead",
        "walk on",
        "keep walking forward",
        "go forward at walking pace",
        "start walking straight on",
        "take a walk forward",
        "please walk forward now",
        "step forward and keep going",
        "head forward at an easy pace",
        "stroll ahead",
        "carry on walking",
        "can you walk forward for me",
        "walk in a straight line",
        "wander forward slowly",
    ),
    held_out=(
        "march forward",
        "proceed straight ahead",
        "amble ahead",
        "advance at walking pace",
        "move forward, walking",
        "continue your walk forward",
        "wlak forward",
        "walk forwrad please",
        "go straigt ahead",
        "keep walkng ahead",
    ),
)
RUN_FORWARD = Family(
    train=(
        "run forward",
        "run straight ahead",
        "run ahead",
        "start running",
        "run as fast as you can",
        "go forward fast",
        "jog forward",
        "keep running forward",
        "hurry straight ahead",
        "please run forward now",
        "go ahead at running pace",
        "speed up and run",
        "can you run forward for me",
        "run quickly in a straight line",
        "dash ahead",
        "carry on running",
    ),
    held_out=(
        "sprint ahead",
        "race forward",
        "move forward fast, running",
        "continue your run",
        "rush straight ahead",
        "advance at running pace",
        "rnu forward",
        "run forwrad please",
        "start runnning",
        "jgo forward fast",
    ),
)
WALK_BACKWARD = Family(
    train=(
        "walk backward",
        "go straight back",
        "walk back",
        "walk backwards",
        "back up",
        "go backward slowly",
        "step back and keep going",
        "keep walking backward",
        "please walk backward now",
        "move back",
        "reverse",
        "take some steps backward",
        "can you walk backward for me",
        "back away",
        "go in reverse",
        "retreat slowly",
    ),
    held_out=(
        "march backward",
        "proceed backward",
        "stroll backwards",
        "head back in reverse",
        "amble back slowly",
        "continue your walk backward",
        "wlak backward",
        "walk bakcward please",
        "go straigt back",
        "bakc up",
    ),
)
RUN_BACKWARD = Family(
    train=(
        "run backward",
        "run back",
        "run backwards",
        "start running backward",
        "go backward fast",
        "hurry back",
        "keep running backward",
        "please run backward now",
        "run in reverse",
        "go back at running pace",
        "can you run backward for me",
        "dash backward",
    ),
    held_out=(
        "sprint backward",
        "race backwards",
        "rush back in reverse",
        "continue your run backward",
        "rnu backward",
        "run bakcward please",
        "go bakward fast",
    ),
)
TURN_LEFT = Family(
    train=(
        "turn left",
        "turn on the spot to the left",
        "turn to the left",
        "rotate left",
        "spin left where you are",
        "face left",
        "keep turning left",
        "please turn left now",
        "turn leftward",
        "make a left turn on the spot",
        "rotate counterclockwise to the left",
        "turn round to your left",
        "can you turn left for me",
        "swing left",
        "look to the left and turn",
        "left turn",
    ),
    held_out=(
        "pivot left",
        "swivel to the left",
        "revolve left on the spot",
        "twist round to your left",
        "go left on the spot",
        "continue your turn to the left",
        "trun left",
        "turn lfet please",
        "roate left",
        "turnn to teh left",
    ),
)
TURN_RIGHT = Family(
    train=(
        "turn right",
        "turn on the spot to the right",
        "turn to the right",
        "rotate right",
        "spin right where you are",
        "face right",
        "keep turning right",
        "please turn right now",
        "turn rightward",
        "make a right turn on the spot",
        "rotate clockwise to the right",
        "turn round to your right",
        "can you turn right for me",
        "swing right",
        "look to the right and turn",
        "right turn",
    ),
    held_out=(
        "pivot right",
        "swivel to the right",
        "revolve right on the spot",
        "twist round to your right",
        "go right on the spot",
        "continue your turn to the right",
        "trun right",
        "turn rihgt please",
        "roate right",
        "turnn to teh right",
    ),
)
STAND_STILL = Family(
    train=(
        "stand still",
        "stop and stay where you are",
        "stop",
        "stay",
        "stand",
        "do not move",
        "halt",
        "keep standing still",
        "please stand still now",
        "stay in place",
        "hold still",
        "wait here",
        "can you stand still for me",
        "stop moving",
        "remain standing where you are",
        "freeze",
    ),
    held_out=(
        "stay put",
        "hold your position and wait",
        "pause here, do not move",
        "remain still",
        "rest in place",
        "continue standing where you are",
        "stnad still",
        "stand sitll please",
        "stop moveing",
        "stpo and stay",
    ),
)
FOLLOW = Family(
    train=(
        "follow the command",
        "go as fast and turn as quickly as you are told",
        "follow the commands",
        "do as the command says",
        "follow the joystick",
        "track the commanded speed",
        "obey the command",
        "go where you are told",
        "please follow the command now",
        "follow the given speed and turn rate",
        "keep following the command",
        "let the command steer you",
        "can you follow the command for me",
        "do what the joystick says",
        "move as commanded",
        "match the commanded speed",
    ),
    held_out=(
        "heed the command",
        "go by the command",
        "act on the given command",
        "keep to the commanded speed and turn rate",
        "let the joystick drive you",
        "continue following the commands",
        "folow the command",
        "follow teh comand",
        "obey the joystikc",
        "do as the comand says",
    ),
)
RECOVER = Family(
    train=(
        "get up",
        "stand up after a fall",
        "stand up",
        "rise from the floor",
        "get back up",
        "get on your feet",
        "recover from the fall",
        "please get up now",
        "get up from the ground",
        "rise to your feet",
        "recover",
        "pick yourself up",
        "can you get up for me",
        "stand up again",
        "get up off the floor",
        "come back to your feet",
    ),
    held_out=(
        "lift yourself up",
        "push yourself up from the floor",
        "climb to your feet",
        "scramble up off the ground",
        "arise after your fall",
        "haul yourself up again",
        "get pu",
        "satnd up after a fall",
        "rise form the flor",
        "recovr from the fall",
    ),
)
TURN_OVER = Family(
    train=(
        "get up",
        "turn over on your feet",
        "stand up after a fall",
        "get on your feet",
        "turn over",
        "roll over and get up",
        "get back up",
        "recover from the fall",
        "please get up now",
        "get off your back",
    ),
    held_out=(
        "flip over on your feet",
        "climb to your feet",
        "lift yourself up",
        "get pu",
        "trun over",
        "recovr from the fall",
    ),
)
SPRINT = Family(train=("sprint", "run straight ahead as fast as you can"))

HELD_OUT = frozenset(phrase for family in list(globals().values()) if isinstance(family, Family) for phrase in family.held_out)
