"""Softmax loss of images over class names: the choice that a specialized encoder has to make when it is used.

    loss of an image = log sum over the names of its set of exp(scale x.y)  -  the same sum over those that are right

Right are its own name and, where others of the set mean the same concept, these too.  Only groups with a condition count, each
as much as any other, however many images it has.  The names are at hand on every rank, as conditioning gathers them, so nothing
travels but their gradient.
Shapes: B images of this rank, N of all, M names in sets, G groups, C names in a set, D embedding.
"""

import torch
from torch import Tensor

from training.batch_texts import BatchTexts
from training.conditioning import ConditioningPlan
from training.exchange import rank, world_size


def name_loss(
    image_features: Tensor,
    name_features: Tensor,
    *,
    logit_scale: Tensor,
    plan: ConditioningPlan,
    texts: BatchTexts,
    concept_ids: Tensor,
) -> Tensor:
    """Mean over the conditioned groups, of which there must be some, of the mean over their images; fp32 also under autocast.

    Memory is B x M, as many values as a rank's logits.

    Args:
        image_features: (B, D) unit vectors.
        name_features: (M, D) unit vectors, see `BatchTexts.mean_by_name`.
        logit_scale: () already exponentiated.
        concept_ids: (N,) of the samples of all ranks.

    Returns:
        () this rank's share; the mean over ranks is the loss.
    """
    group_index = plan.group_index.to(image_features.device)
    counted = plan.conditioned.to(image_features.device)[group_index]  # (N,)
    mine = slice(rank() * len(image_features), (rank() + 1) * len(image_features))
    rest = ~counted[mine, None]
    # an image that does not count may choose anything: its loss and its gradient are zero to the bit
    offered = _names_of_groups(plan, texts)[group_index[mine]] | rest  # (B, M)
    right = offered & _names_of_concepts(texts, concept_ids)[mine] | rest
    with torch.autocast(image_features.device.type, enabled=False):
        logits = logit_scale * image_features.float() @ name_features.float().T
        losses = _log_sum(logits, offered) - _log_sum(logits, right)
        size = torch.bincount(group_index, minlength=plan.num_groups)  # (G,) images, of all ranks
        return (losses / size[group_index[mine]]).sum() * (world_size() / plan.conditioned.sum())


def _log_sum(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.masked_fill(~chosen, float("-inf")).logsumexp(dim=1)


def _names_of_groups(plan: ConditioningPlan, texts: BatchTexts) -> Tensor:
    """(G, M) bool, True where a name is in the set of a group."""
    sets = texts.number[plan.sets.to(texts.number.device)]  # padding repeats a name of the set
    return torch.zeros(plan.num_groups, len(texts.starts), dtype=torch.bool, device=sets.device).scatter_(1, sets, True)


def _names_of_concepts(texts: BatchTexts, concept_ids: Tensor) -> Tensor:
    """(N, M) bool, True where a name is said of a sample's concept, by itself or by another sample."""
    _, concept = torch.unique(concept_ids, return_inverse=True)
    means = torch.zeros(int(concept.max()) + 1, len(texts.starts), dtype=torch.bool, device=concept.device)
    named = texts.name_number >= 0
    means[concept[named], texts.name_number[named]] = True
    return means[concept]
