"""The objectives of a reranker: pointwise (https://arxiv.org/abs/2506.05176, Eq. 2), listwise, of a teacher's scores.

Shapes: n pairs of a query and a document, Q queries, G documents of a query; z = z_yes - z_no is the logit of a pair.

Every function returns one loss for each pair or query, which the caller weights and sums, in float32 (float64 for
float64 logits).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.losses.numerics import check_temperature, kl_divergence, loss_dtype, masked_log_softmax

MU = 10.0  # weight of NDCG-Loss2 beside LambdaRank in NDCG-Loss2++, as in the paper and in sentence-transformers


def pointwise(logits: Tensor, targets: Tensor, *, positive_weight: float) -> Tensor:
    """Eq. 2, -log p(answer | prompt), with p over the two answers only: p = sigmoid(z), the score in inference.

    L = -(w t log p + (1 - t) log(1 - p)), with t the target and w the weight of positives

    Args:
        logits: [n] z.
        targets: [n] relevance from 0 to 1: labels, or a teacher's probabilities.
        positive_weight: w.

    Returns:
        [n] float32 or float64.
    """
    z = logits.to(loss_dtype(logits))  # [n]
    # Not log(p) and log(1 - p), which would be -inf where p rounds to 0 or 1.
    return cross_entropy(torch.stack([F.logsigmoid(-z), F.logsigmoid(z)], dim=1), targets, positive_weight)


def pointwise_vocabulary(log_probabilities: Tensor, targets: Tensor, *, positive_weight: float) -> Tensor:
    """Eq. 2 with the language model's own p(answer | prompt), over the full vocabulary: p_yes + p_no < 1.

    L = -(w t log p_yes + (1 - t) log p_no), with t the target and w the weight of positives

    Args:
        log_probabilities: [n, 2] of the answers no and yes.
        targets: [n] relevance from 0 to 1.
        positive_weight: w.

    Returns:
        [n] float32 or float64.
    """
    return cross_entropy(log_probabilities.to(loss_dtype(log_probabilities)), targets, positive_weight)


def cross_entropy(log_probabilities: Tensor, targets: Tensor, positive_weight: float) -> Tensor:
    """Cross-entropy of [n, 2] log-probabilities of no and yes, with the term of yes weighted: [n]."""
    assert log_probabilities.shape == (len(targets), 2), (log_probabilities.shape, targets.shape)
    no, yes = log_probabilities.unbind(dim=1)
    t = targets.to(log_probabilities.dtype)
    return -(positive_weight * t * yes + (1 - t) * no)


def listwise(scores: Tensor, positive: Tensor, present: Tensor, *, temperature: float) -> Tensor:
    """Softmax cross-entropy of each positive against the negatives of its query.

    L = mean over positives p of -log( e^{s_p/tau} / (e^{s_p/tau} + sum over negatives n of e^{s_n/tau}) )

    Other positives are not in the denominator: they must not push each other down.

    Args:
        scores: [Q, G] s, for example the logits z.
        positive: [Q, G] bool, whether the document is a positive.
        present: [Q, G] bool, False for padding, which is ignored.
        temperature: tau.

    Returns:
        [Q] float32 or float64; 0 for a query without positives or without negatives.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    check_temperature(temperature)
    assert scores.shape == positive.shape == present.shape, (scores.shape, positive.shape, present.shape)
    logits = (scores.to(loss_dtype(scores)) / temperature).masked_fill(~present, 0)  # [Q, G]
    is_positive, is_negative = positive & present, ~positive & present
    lowest = torch.finfo(logits.dtype).min  # not -inf: a query without negatives must give 0, not NaN
    negatives = logits.masked_fill(~is_negative, lowest).logsumexp(dim=1, keepdim=True)  # [Q, 1]
    losses = -F.logsigmoid(logits - negatives).masked_fill(~is_positive, 0)  # [Q, G]
    return losses.sum(dim=1) / is_positive.sum(dim=1).clamp_min(1)


def lambda_ndcg(scores: Tensor, labels: Tensor, present: Tensor, *, temperature: float) -> Tensor:
    """NDCG-Loss2++ (Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018, Eq. 17).

    L = sum over i, j with l_i > l_j of (rho_ij + mu delta_ij) |G_i - G_j| log2(1 + e^{-(s_i - s_j)/tau})

    with gains G = (2^l - 1) / ideal DCG, discounts D(r) = log2(1 + r) and the ranks r by the scores as they are now,
    rho_ij = |1/D(r_i) - 1/D(r_j)|, and delta_ij = |1/D(d) - 1/D(d + 1)| where d = |r_i - r_j|. Weights are constants.

    Args:
        scores: [Q, G] s, for example the logits z.
        labels: [Q, G] relevance l, from 0.
        present: [Q, G] bool, False for padding, which is ignored.
        temperature: tau; 1/tau is the paper's sigma.

    Returns:
        [Q] float32 or float64; 0 for a query whose documents have one label.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    check_temperature(temperature)
    assert scores.shape == labels.shape == present.shape, (scores.shape, labels.shape, present.shape)
    s = (scores.to(loss_dtype(scores)) / temperature).masked_fill(~present, 0)  # [Q, G]
    relevance = labels.to(s.dtype).masked_fill(~present, 0)
    weights = lambda_weights(ranks(s.detach(), present), relevance)  # [Q, G, G]
    better = relevance[:, :, None] > relevance[:, None, :]
    pairs = better & present[:, :, None] & present[:, None, :]
    losses = -F.logsigmoid(s[:, :, None] - s[:, None, :]) / math.log(2)
    return (weights * losses).masked_fill(~pairs, 0).sum(dim=(1, 2))


def ranks(scores: Tensor, present: Tensor) -> Tensor:
    """[Q, G] from 1 for the highest score of a query; of equal ones the earlier is first, and absent ones are last."""
    order = scores.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) + 1


def lambda_weights(rank: Tensor, relevance: Tensor) -> Tensor:
    """(rho_ij + mu delta_ij) |G_i - G_j| of `lambda_ndcg`, [Q, G] to [Q, G, G]; absent documents have relevance 0."""
    discount = 1 / torch.log2(1 + rank.to(relevance.dtype))  # [Q, G]
    gain = torch.exp2(relevance) - 1
    ideal = (gain.sort(dim=1, descending=True).values * discount.sort(dim=1, descending=True).values).sum(dim=1)
    gain = gain / ideal.clamp_min(torch.finfo(gain.dtype).tiny)[:, None]
    rho = (discount[:, :, None] - discount[:, None, :]).abs()
    distance = (rank[:, :, None] - rank[:, None, :]).abs().clamp_min(1).to(relevance.dtype)  # of a pair at least 1
    delta = 1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)
    return (rho + MU * delta) * (gain[:, :, None] - gain[:, None, :]).abs()


def margin_mse(
    scores: Tensor,
    teacher: Tensor,
    positive: Tensor,
    present: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Margin-MSE (https://arxiv.org/abs/2010.02666): the margins of a teacher between positives and negatives.

    L = mean over positives p and negatives n of ((s_p - s_n)/temperature - (t_p - t_n)/teacher_temperature)^2

    Args:
        scores: [Q, G] s of the student, for example the logits z.
        teacher: [Q, G] t of the teacher, on the scale that the student is to have.
        positive: [Q, G] bool, whether the document is a positive.
        present: [Q, G] bool, False for padding, which is ignored.
        temperature: Divides the student's scores.
        teacher_temperature: Divides the teacher's.

    Returns:
        [Q] float32 or float64; 0 for a query without positives or without negatives.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    check_temperature(temperature)
    check_temperature(teacher_temperature)
    assert scores.shape == teacher.shape == positive.shape == present.shape, (scores.shape, teacher.shape)
    dtype = loss_dtype(scores)
    apart = (scores.to(dtype) / temperature - teacher.to(dtype) / teacher_temperature).masked_fill(~present, 0)
    pairs = (positive & present)[:, :, None] & (~positive & present)[:, None, :]  # [Q, G, G]
    squares = (apart[:, :, None] - apart[:, None, :]).square().masked_fill(~pairs, 0)
    return squares.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp_min(1)


def kl(scores: Tensor, teacher: Tensor, present: Tensor, *, temperature: float, teacher_temperature: float) -> Tensor:
    """KL(softmax(teacher / teacher_temperature) || softmax(scores / temperature)) over each query's documents.

    Args:
        scores: [Q, G] scores of the student, for example the logits z.
        teacher: [Q, G] scores of the teacher.
        present: [Q, G] bool, False for padding, which is ignored.
        temperature: Divides the student's scores.
        teacher_temperature: Divides the teacher's.

    Returns:
        [Q] float32 or float64; 0 for a query without documents.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    check_temperature(temperature)
    check_temperature(teacher_temperature)
    assert scores.shape == teacher.shape == present.shape, (scores.shape, teacher.shape, present.shape)
    dtype = loss_dtype(scores)
    predicted = masked_log_softmax(scores.to(dtype) / temperature, ~present)  # [Q, G]
    target = masked_log_softmax(teacher.to(dtype) / teacher_temperature, ~present)  # [Q, G]
    return kl_divergence(target, predicted, ~present)
