"""The penalised law as a posterior: priors, its mode and curvature there, and draws by an ensemble of walkers.

Walkers take the stretch moves of Goodman and Weare (2010), which do not mind that A and α go together; they start at
draws of the Laplace approximation. A bootstrap of the mode would not do: where data say nothing of a constant its mode
stays at that of the prior.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from isotrace.transfer.scaling.law import SHAPES, Law, Runs, optimum, point_estimate

WALKERS, BURN_IN, STEPS, EVERY = 64, 600, 1_500, 10
SETTLED = 1.2
"""R̂ of walkers above which draws are not to be relied on."""


@dataclass(frozen=True)
class Priors:
    """`a`, `b`, `e`: mean and sd of ln A, ln B and ln E. `exponents`: range of α and β. `centred`: A and B are those of
    N and D in units of the runs' geometric means, so that they are parts of the loss there."""

    a: tuple[float, float] = (np.log(500), 2.0)
    b: tuple[float, float] = (np.log(500), 2.0)
    e: tuple[float, float] = (np.log(1e-3), 1.0)
    exponents: tuple[float, float] = (0.0, 2.0)
    centred: bool = False


@dataclass(frozen=True, eq=False)
class Fit:
    """`point`: the law without penalties, by Huber's loss. `draws`: constant → `[n]`; of A, B, alpha, beta, E, sigma,
    and of the penalties that can be seen. `prior_e`: 90 % of its prior. `residuals [n]`: ln loss less the draws' mean.
    `r_hat`: the largest over constants, walkers for chains; above SETTLED nothing is to be read off."""

    point: Law
    draws: dict[str, np.ndarray]
    prior_e: tuple[float, float]
    residuals: np.ndarray
    r_hat: float

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        return _ends(self.draws[name], level)

    def optimum(self, flops: float, level: float = 0.9) -> dict[str, tuple[float, float, float]]:
        """Median, low and high of `params` and `tokens` of least loss at 6 N D = `flops`."""
        own = self.draws
        found = optimum(own["A"], own["B"], own["alpha"], own["beta"], flops)
        names = ("params", "tokens")
        return {name: (float(np.median(x)), *_ends(x, level)) for name, x in zip(names, found, strict=True)}


def fit_law(runs: Runs, seed: int, priors: Priors | None = None) -> Fit:
    """See the module; priors of the methods where none are given."""
    priors = priors or Priors()
    model = _Model(runs, priors)
    point = point_estimate(runs, priors.exponents)
    rng = np.random.default_rng((seed, 31))
    starts = _starts(model, point, rng)
    if priors.centred:
        chain = model.back(_ensemble(model.log_density_of_slopes, model.forth(starts), rng))
    else:
        chain = _ensemble(model.log_density, starts, rng)
    flat = chain.reshape(-1, chain.shape[-1])
    named = dict(zip(model.names, flat.T, strict=True))
    draws = {"alpha": named["alpha"], "beta": named["beta"]}
    draws["A"] = np.exp(named["ln_A"] + named["alpha"] * model.middle[0])
    draws["B"] = np.exp(named["ln_B"] + named["beta"] * model.middle[1])
    draws |= {name: named[name] for name in model.names if name.startswith("rate_")}
    draws |= {n.removeprefix("ln_"): np.exp(named[n]) for n in model.names if n.startswith("ln_") and n[3:] not in "AB"}
    ends = np.exp(priors.e[0] + 1.645 * priors.e[1] * np.array([-1, 1])).tolist()
    mean = np.mean([model.mean(part) for part in flat[:: max(1, len(flat) // 500), None]], (0, 1))
    return Fit(point, draws, (ends[0], ends[1]), model.y - mean, _r_hat(chain))


class _Model:
    """Coordinates, all real but for α and β: ln A, ln B, α, β, ln E, ln σ; where the learning rate varies a, b, c of ln
    η₀ = a + b ln batch + c ln N and ln p; for every shape that varies ln p and ln s₀."""

    def __init__(self, runs: Runs, priors: Priors) -> None:
        self.runs, self.priors = runs, priors
        self.n, self.d, self.y = np.log(runs.params), np.log(runs.tokens), np.log(runs.loss)
        self.middle = (self.n.mean(), self.d.mean()) if priors.centred else (0.0, 0.0)
        self.names = ["ln_A", "ln_B", "alpha", "beta", "ln_E", "ln_sigma"]
        self.normal = {"ln_A": priors.a, "ln_B": priors.b, "ln_E": priors.e}
        self.exponential = ["ln_sigma"]
        if runs.rated:
            self.normal |= {"rate_a": (np.log(3.9e-5), 1.0), "rate_b": (0.5, 0.1), "rate_c": (0.0, 0.5)}
            self.names += ["rate_a", "rate_b", "rate_c", "ln_p_rate"]
            self.exponential.append("ln_p_rate")
        for shape in runs.shaped:
            self.normal[f"ln_best_{shape}"] = SHAPES[shape]
            self.names += [f"ln_p_{shape}", f"ln_best_{shape}"]
            self.exponential.append(f"ln_p_{shape}")
        self.at = {name: i for i, name in enumerate(self.names)}

    def mean(self, u: np.ndarray) -> np.ndarray:
        """ln loss `[m, runs]` of constants `u [m, p]`."""

        def of(name: str) -> np.ndarray:
            return u[:, self.at[name], None]

        parts = np.exp(of("ln_A") - of("alpha") * (self.n - self.middle[0]))
        parts += np.exp(of("ln_B") - of("beta") * (self.d - self.middle[1]))
        found = np.log(parts + np.exp(of("ln_E")))
        if self.runs.rated:
            assert self.runs.learning_rate is not None
            assert self.runs.batch is not None
            best = of("rate_a") + of("rate_b") * np.log(self.runs.batch) + of("rate_c") * self.n
            found = found + np.exp(of("ln_p_rate")) * (np.log(self.runs.learning_rate) - best) ** 2
        for shape in self.runs.shaped:
            off = self.runs.shapes[shape] - np.exp(of(f"ln_best_{shape}"))
            found = found + np.exp(of(f"ln_p_{shape}")) * off**2
        return found

    def log_density(self, u: np.ndarray) -> np.ndarray:
        """`[m]`, up to a constant; −∞ outside the range of exponents."""
        with np.errstate(over="ignore", invalid="ignore"):
            sigma = u[:, self.at["ln_sigma"]]
            value = -0.5 * ((self.y - self.mean(u)) ** 2).sum(1) * np.exp(-2 * sigma) - len(self.y) * sigma
            for name, (middle, sd) in self.normal.items():
                value = value - 0.5 * ((u[:, self.at[name]] - middle) / sd) ** 2
            for name in self.exponential:  # Exp(1) of the exponential of the coordinate
                value = value + u[:, self.at[name]] - np.exp(u[:, self.at[name]])
        low, high = self.priors.exponents
        slopes = u[:, [self.at["alpha"], self.at["beta"]]]
        inside = ((slopes >= low) & (slopes <= high)).all(1)
        return np.where(inside & np.isfinite(value), value, -np.inf)

    def forth(self, u: np.ndarray) -> np.ndarray:
        """Of a centred law, what data tell directly, `[…, p]` each: the logarithms of A + B + E, A/E and B/E for those
        of A, B and E; α and β times the share of A and B. Walkers find their way there, not on the thin shell of parts
        with one sum, where an exponent is as free as its part is small."""
        v, (a, b, alpha, beta, e) = u.copy(), self._places
        v[..., e] = np.logaddexp(np.logaddexp(u[..., a], u[..., b]), u[..., e])
        v[..., alpha], v[..., beta] = (u[..., x] * np.exp(u[..., y] - v[..., e]) for x, y in ((alpha, a), (beta, b)))
        v[..., a], v[..., b] = u[..., a] - u[..., e], u[..., b] - u[..., e]
        return v

    def back(self, v: np.ndarray) -> np.ndarray:
        u, (a, b, alpha, beta, e) = v.copy(), self._places
        u[..., e] = v[..., e] - np.logaddexp(np.logaddexp(v[..., a], v[..., b]), 0)
        u[..., a], u[..., b] = v[..., a] + u[..., e], v[..., b] + u[..., e]
        u[..., alpha], u[..., beta] = (v[..., x] * np.exp(v[..., e] - u[..., y]) for x, y in ((alpha, a), (beta, b)))
        return u

    def log_density_of_slopes(self, v: np.ndarray) -> np.ndarray:
        """`[m]` in the coordinates of `forth`, the determinant included."""
        u, (a, b, _, _, e) = self.back(v), self._places
        return self.log_density(u) + 2 * v[:, e] - u[:, a] - u[:, b]

    @property
    def _places(self) -> tuple[int, ...]:
        return tuple(self.at[name] for name in ("ln_A", "ln_B", "alpha", "beta", "ln_E"))


def _starts(model: _Model, point: Law, rng: np.random.Generator) -> np.ndarray:
    """`[WALKERS, p]`: draws of a normal at the mode with the curvature there, within the exponents' range."""
    low, high = model.priors.exponents
    inner = (low + 0.01 * (high - low), high - 0.01 * (high - low))
    known = {
        "ln_A": np.log(point.A) - point.alpha * model.middle[0],
        "ln_B": np.log(point.B) - point.beta * model.middle[1],
        "alpha": point.alpha, "beta": point.beta, "ln_E": max(np.log(point.E), model.priors.e[0]), "ln_sigma": -3.0,
    }  # fmt: skip
    first = [known.get(name, model.normal.get(name, (-4.0, 1))[0]) for name in model.names]
    bounds = [inner if name in ("alpha", "beta") else (None, None) for name in model.names]
    start = np.array([np.clip(x, *b) if b[0] is not None else x for x, b in zip(first, bounds, strict=True)])
    p, steps = len(start), 1e-5 * np.eye(len(start))

    def loss(u: np.ndarray) -> tuple[float, np.ndarray]:
        values = model.log_density(np.concatenate([u[None], u + steps, u - steps]))
        return -values[0], -(values[1 : p + 1] - values[p + 1 :]) / 2e-5

    mode = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    wide = 1e-3 * np.eye(p)
    curvature = np.stack([loss(mode + e)[1] - loss(mode - e)[1] for e in wide]) / 2e-3
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    # flat and falling directions get the width of a prior
    spread = 1 / np.sqrt(np.clip(np.where(np.isfinite(values), values, 1.0), 0.25, None))
    walkers = mode + (rng.standard_normal((WALKERS, p)) * spread) @ vectors.T
    places = [model.at["alpha"], model.at["beta"]]
    walkers[:, places] = np.clip(walkers[:, places], *inner)
    return walkers


def _ensemble(log_density: Callable[[np.ndarray], np.ndarray], x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`[kept steps, walkers, p]`: stretch moves, one half of the walkers along lines to the other in turn."""
    half, p, kept = len(x) // 2, x.shape[1], []
    value = log_density(x)
    for step in range(BURN_IN + STEPS):
        if (
            step == BURN_IN // 2
        ):  # one that began where next to nothing lies finds no way out: it begins again elsewhere
            lost = value < np.median(value) - 5 * p
            found = rng.choice(np.flatnonzero(~lost), int(lost.sum()))
            x[lost], value[lost] = x[found], value[found]
        for own, other in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            z = (rng.random(half) + 1) ** 2 / 2
            partner = x[other][rng.integers(half, size=half)]
            new = partner + z[:, None] * (x[own] - partner)
            then = log_density(new)
            taken = np.log(rng.random(half)) < (p - 1) * np.log(z) + then - value[own]
            x[own] = np.where(taken[:, None], new, x[own])
            value[own] = np.where(taken, then, value[own])
        if step >= BURN_IN and step % EVERY == 0:
            kept.append(x.copy())
    return np.stack(kept)


def _r_hat(chain: np.ndarray) -> float:
    """Gelman and Rubin's (1992), the largest over coordinates of `[steps, walkers, p]`."""
    within, between = chain.var(0, ddof=1).mean(0), chain.mean(0).var(0, ddof=1)
    return float(np.sqrt(1 + between / within).max())


def _ends(draws: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high
