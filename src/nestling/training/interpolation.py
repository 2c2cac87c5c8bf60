"""Weights between the base's and the trained ones, of which a dev set chooses (WiSE-FT, arXiv 2109.01903).

    weights = base + share * (trained - base)

Training on a domain costs some of what a model can do elsewhere, and on data that teaches little some of what it could
do there; a share below 1 often keeps more of both. Smaller shares are measured as long as they are better on dev. The
share is 0, the base itself, where none is as good at the full dimension and better on the average over dimensions.
A share may also be given; then dev, if there is one, chooses between it and the base.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor, nn

from nestling.checkpoint.state import trainable_tensors
from nestling.distributed.ranks import on_rank_zero
from nestling.run_files import Exported, Results, evaluation_at, forget_exported, write_exported
from nestling.training.dev_details import DevEvaluation
from nestling.training.run import Run

SHARES = (0.75, 0.5, 0.25)
METRIC = "nDCG@10"


@dataclass
class Interpolation:
    """What was measured with each share of the trained weights.

    Args:
        results: {share: evaluation}; 0 is the base, 1 the trained weights.
        fixed: The only share that is considered beside the base; None for all.
    """

    results: dict[float, Results] = field(default_factory=dict)
    fixed: float | None = None

    def mean(self, share: float) -> float:
        """nDCG@10, averaged over dimensions and dev sets."""
        return fmean(metrics[METRIC] for by_dim in self.results[share].values() for metrics in by_dim.values())

    def is_as_good(self, share: float) -> bool:
        """Whether it is not below the base at the full dimension."""
        return full(self.results[share]) >= full(self.results[0.0])

    @property
    def chosen(self) -> float:
        """The share with the best mean among those that are as good as the base; the largest of equal ones."""
        considered = [share for share in self.results if self.fixed in (None, share) or share == 0]
        return max(filter(self.is_as_good, considered), key=lambda share: (self.mean(share), share))

    def next_share(self) -> float | None:
        """The next share to measure: the given one, or a smaller one as long as less is better; None for no more."""
        if self.fixed is not None:
            return None if self.fixed in self.results else self.fixed
        smallest = min(share for share in self.results if share > 0)
        return max((each for each in SHARES if each < smallest), default=None) if self.goes_on(smallest) else None

    def goes_on(self, share: float) -> bool:
        """Whether a smaller share than this one, the smallest of those measured, is worth measuring."""
        return self.chosen in (share, 0.0)

    def exported(self, step: int) -> Exported:
        """What is written into the run's folder."""
        measured = {f"{share:g}": self.mean(share) for share in sorted(self.results)}
        return Exported(step, self.chosen, measured, self.results[self.chosen])

    def lines(self) -> list[str]:
        """What was chosen, and what it is worth."""
        last = 1.0 if self.fixed is None else self.fixed
        base, trained, best = (full(self.results[share]) for share in (0.0, last, self.chosen))
        measured = ", ".join(f"{share:g}: {self.mean(share):.4f}" for share in sorted(self.results))
        said = [f"share of the trained weights in final/: {self.chosen:g} (mean nDCG@10 on dev by share: {measured})"]
        if self.chosen == 0:
            what = "training" if self.fixed is None else f"a share of {last:g}"
            said.append(
                f"warning: {what} did not beat the base on dev: nDCG@10 at the full dimension {base:.4f} before, "
                f"{trained:.4f} after; averaged over dimensions {self.mean(0.0):.4f} and {self.mean(last):.4f}. final/ "
                "holds the base's weights; the trained ones are in checkpoints/"
            )
        elif trained < base:
            said.append(
                f"training alone made dev worse at the full dimension: nDCG@10 {base:.4f} before, {trained:.4f} after; "
                f"between them, in final/, it is {best:.4f}"
            )
        return said


def full(results: Results) -> float:
    """nDCG@10 at the full dimension, averaged over dev sets."""
    return fmean(by_dim[max(by_dim)][METRIC] for by_dim in results.values())


def interpolate_run(run: Run, base: Callable[[], Mapping[str, Tensor]], fixed: float | None, step: int) -> None:
    """Leave in the model what dev chooses between the base's weights and those of a step; all ranks must call it.

    Args:
        run: The run, whose model holds the weights of the step.
        base: Gives its `trainable_tensors` before training.
        fixed: The share that is taken unless dev prefers the base; None where dev chooses the share, if there is one.
        step: The step.
    """
    metrics = run.folder.metrics
    before, after = on_rank_zero(lambda: [evaluation_at(metrics, each) for each in (0, step)])
    # Without a dev set, in a run of an earlier release, or in one that has lost lines of its metrics.
    if fixed is None and not (before and after):
        as_trained(run, step)
        return
    if fixed is not None and not before:
        move_back(run, base(), fixed, step)
        return
    found, evaluations = Interpolation({0.0: before, 1.0: after}, fixed), dict[float, list[DevEvaluation]]()

    def measure(share: float) -> Results:
        assert run.measure is not None
        for passed_over in evaluations.keys() - {found.chosen}:
            del evaluations[passed_over]  # it holds the embeddings of its dev sets
        evaluations[share] = run.measure()
        return {each.retrieval_set.name: each.metrics for each in evaluations[share]}

    choose_share(run.backend.model, base(), found, measure)
    if found.chosen == 0:
        measure(0.0)  # for the details of each query, which the page shows of what is in final/
    if found.chosen in evaluations:
        run.keep(step, [each.with_details() for each in evaluations[found.chosen]])
    if run.main_rank:
        print("\n".join(found.lines()), flush=True)
        write_exported(run.folder.path, found.exported(step))


def move_back(run: Run, base: Mapping[str, Tensor], share: float, step: int) -> None:
    """Leave a share of the trained weights in the model, with no evaluation of the base to hold it against."""
    interpolate(run.backend.model, base, trained_tensors(run.backend.model), share)
    if run.main_rank:
        print(f"share of the trained weights in final/: {share:g}, as set; dev has not measured the base", flush=True)
        write_exported(run.folder.path, Exported(step, share, {}, {}))


def as_trained(run: Run, step: int) -> None:
    """Leave the weights as they are, and forget what was chosen before the run was resumed with other settings."""
    if run.main_rank:
        forget_exported(run.folder.path)


def choose_share(
    model: nn.Module,
    base: Mapping[str, Tensor],
    found: Interpolation,
    measure: Callable[[float], Results],
) -> Interpolation:
    """Measure shares of the trained weights, and leave the best in the model. All ranks must call it.

    Args:
        model: The model, with its trained weights.
        base: Its `trainable_tensors` before training.
        found: What is known of shares 0 and 1; the others are added.
        measure: Evaluates the model as it is, with a share of the trained weights.
    """
    trained = trained_tensors(model)
    while (share := found.next_share()) is not None:
        interpolate(model, base, trained, share)
        found.results[share] = measure(share)
    interpolate(model, base, trained, found.chosen)
    return found


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the `trainable_tensors` of a model, on the CPU."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in trainable_tensors(model).items()}


@torch.no_grad()
def interpolate(model: nn.Module, base: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> None:
    """Give the model `share` of its trained weights, and of the base's the rest; exactly theirs at 1 and 0."""
    for name, tensor in trainable_tensors(model).items():
        if tensor.is_floating_point():
            start, end = (each[name].to(tensor.device, tensor.dtype) for each in (base, trained))
            tensor.copy_(torch.lerp(start, end, share))
