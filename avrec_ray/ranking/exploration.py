"""Exploration: places are drawn instead of given to the best, and the probability of each draw is known.

Without it feedback only tells of what the model already likes. With the probabilities ("propensities") logged, the
value of another policy can be estimated from it (inverse propensity scoring).

Dimension key: K candidates.
"""

import hashlib
import json

import numpy as np
import numpy.typing as npt

SECONDS_A_DAY = 86_400


def request_rng(seed: int, user_id: str | None, day: int) -> np.random.Generator:
    """Randomness of one user's lists on one day: the same in every process, unlike Python's `hash`.

    Users without an id share it.

    Args:
        day: days since 1970, UTC.
    """
    told = json.dumps([seed, user_id, day]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(told, digest_size=16).digest(), "little"))


def day_of(at_seconds: float) -> int:
    """Days since 1970 of a POSIX time, UTC.

    >>> day_of(86_400 * 3 + 5.0)
    3
    """
    return int(at_seconds // SECONDS_A_DAY)


def place_probabilities(
    utility: npt.NDArray[np.float64], pool: npt.NDArray[np.bool_], temperature: float
) -> npt.NDArray[np.float64]:
    """[K]: probability that the next place goes to each candidate: softmax of utility / temperature over the pool.

    Filling place after place so is sampling from the Plackett-Luce model (adding Gumbel noise of that temperature to
    utilities and sorting), generalised to utilities that change with what is placed.

    Args:
        utility: [K] finite.
        pool: bool [K], who may have the place; at least one.
        temperature: in units of utility; 0 gives it to the best, of equal ones to the first.
    """
    probabilities = np.zeros(len(utility))
    if temperature <= 0:
        probabilities[int(np.argmax(np.where(pool, utility, -np.inf)))] = 1.0
        return probabilities
    # Differences first: an exponent can only underflow, to 0, also where a tiny temperature makes it -inf.
    with np.errstate(over="ignore"):
        weights = np.exp((utility[pool] - utility[pool].max()) / temperature)
    probabilities[pool] = weights / weights.sum()
    return probabilities


def draw_place(
    utility: npt.NDArray[np.float64],
    pool: npt.NDArray[np.bool_],
    temperature: float,
    rng: np.random.Generator | None,
) -> tuple[int, float]:
    """Who gets the next place, and the probability of that; one number is drawn from `rng` unless temperature is 0.

    Raises:
        ValueError: a temperature without an rng.
    """
    if temperature <= 0:
        return int(np.argmax(np.where(pool, utility, -np.inf))), 1.0
    probabilities = place_probabilities(utility, pool, temperature)
    if rng is None:
        raise ValueError(f"temperature={temperature} draws at random; give the rng of the request")
    steps = np.cumsum(probabilities)
    drawn = np.searchsorted(steps, rng.random() * steps[-1], side="right")
    position = min(int(drawn), int(np.flatnonzero(probabilities)[-1]))  # the product may round up to the last step
    return position, float(probabilities[position])
