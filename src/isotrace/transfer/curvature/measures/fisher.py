"""The trace of the Gauss–Newton matrix, which for a loss of log-probabilities is Fisher's information."""

from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View, generator_for, summed_gradient
from isotrace.transfer.curvature.measure import Estimate, at_least, mean_and_error, measure


@measure(
    "fisher",
    cost="20 gradients",
    source="Martens 2020, arXiv 1412.1193; Kunstner et al. 2019, arXiv 1905.12558 on drawn against given labels",
    needs=("draws",),
)
def fisher(view: View, seed: int, progress: Progress, *, draws: int = 20) -> list[Estimate]:
    """E‖g‖², g the gradient with labels drawn from the model: those of different predictions are independent and of
    mean 0, so one gradient of all of them together is enough."""
    at_least(2, draws=draws)
    generator, theta, found = generator_for(view.loss, seed), view.loss.at, []
    for _ in progress(range(draws), "Gauss–Newton trace"):
        parts = [lambda t, draw=draw: draw(t, generator) for draw in view.loss.draws]
        found.append(float(summed_gradient(parts, theta)[1].double().square().sum()))
        view.n_gradients += 1
    return [Estimate("gauss_newton_trace", *mean_and_error(found))]
