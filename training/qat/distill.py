"""What the student owes its teacher, which is the same model in float."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher || student) in nats at each position, of logits [..., vocabulary] -> [...]. Times the square of the
    temperature, so that gradients keep their size (Hinton et al. 2015, arXiv 1503.02531, section 2)."""
    log_t = F.log_softmax(teacher.detach().float() / temperature, -1)
    log_s = F.log_softmax(student.float() / temperature, -1)
    return (log_t.exp() * (log_t - log_s)).sum(-1) * temperature**2


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1e-12)


def answer_loss(student, teacher, answers, others: float = 0.0, temperature: float = 1.0) -> torch.Tensor:
    """Divergence over the positions that predict an answer (`answers` is True there [...]), and over all other positions at
    the weight `others`."""
    return weighted_mean(divergence(student, teacher, temperature), torch.where(answers, 1.0, others))


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of hidden states [..., width], relative to the teacher's square."""
    teacher = teacher.detach().float()
    return (student.float() - teacher).square().sum() / teacher.square().sum().clamp(min=1e-12)
