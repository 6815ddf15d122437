"""The local learning coefficient, by stochastic-gradient Langevin dynamics around the parameters."""

import math

import torch

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View, generator_for, normal, summed_gradient
from isotrace.transfer.curvature.measure import Estimate, at_least, mean_and_error, measure


@measure(
    "learning_coefficient",
    cost="1,000 gradients of one part each",
    source="Lau et al. 2023, arXiv 2308.12108, algorithm 1; Welling & Teh 2011",
)
def learning_coefficient(
    view: View, seed: int, progress: Progress, *, chains: int = 4, steps: int = 250, burn_in: int = 125,
    step_size: float = 1e-5, pull: float = 100.0,
) -> list[Estimate]:  # fmt: skip
    """λ̂ = nβ (E[L(θ_t)] − L(θ)), β = 1/ln n, n = `Loss.n_examples`; θ_t from chains on nβL + pull/2 · ‖θ_t − θ‖².

    Each step takes one part of the loss in place of all of it, and the same part's loss at θ is taken off. The error
    is over chains. Too large by the share step_size · nβ · curvature/4 in each direction, too small where nβ ·
    curvature is not far above `pull`; negative where θ is no minimum. `learning_coefficient_drift`: the second half of
    the steps kept less the first: clearly above 0, the chains have not settled and the value is a lower bound.
    NaN where a chain diverges. Raises InputError for fewer than 3 examples.
    """
    at_least(2, chains=chains)
    loss, theta, n = view.loss, view.loss.at, view.loss.n_examples
    if n < 3:
        raise InputError(f"{loss.name} has {n} examples: the learning coefficient needs 3 or more.")
    if not 0 <= burn_in < steps - 1:
        raise InputError(f"a burn-in of {burn_in} of {steps} steps: leave two steps or more behind it.")
    generator, parts = generator_for(loss, seed), loss.parts
    with torch.no_grad():
        start = [float(part(theta)) for part in parts]
    strength, rises, drifts = n / math.log(n), [], []
    for chain in range(chains):
        here, rise = theta.clone(), []
        for step in progress(range(steps), f"learning coefficient, chain {chain + 1} of {chains}"):
            which = int(torch.randint(len(parts), (1,), generator=generator, device=theta.device))
            value, gradient = summed_gradient([parts[which]], here)
            if not math.isfinite(value):
                return [Estimate("learning_coefficient", math.nan, None, "a chain diverged: give a smaller step_size")]
            if step >= burn_in:
                rise.append(len(parts) * (value - start[which]))
            drift = strength * len(parts) * gradient + pull * (here - theta)
            here = here - step_size / 2 * drift + math.sqrt(step_size) * normal(1, loss, generator)[0]
        first, last = rise[: len(rise) // 2], rise[len(rise) // 2 :]
        rises.append(strength * sum(rise) / len(rise))
        drifts.append(strength * (sum(last) / len(last) - sum(first) / len(first)))
    view.n_values += 1
    view.n_gradients += math.ceil(chains * steps / len(parts))  # of the whole loss
    return [
        Estimate("learning_coefficient", *mean_and_error(rises)),
        Estimate("learning_coefficient_drift", *mean_and_error(drifts)),
    ]
