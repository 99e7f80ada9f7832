"""CACD's contrastive loss: the sets of pairs, and the value by hand."""

from __future__ import annotations

import math

import pytest
import torch

from harmonizer.deep.losses.contrastive import contrastive_loss, view_pairs


@pytest.mark.parametrize("subjects, views", [(9, 9), (4, 3), (1, 3), (3, 1)])
def test_counts_of_pairs(subjects, views):
    """Scholz et al. 2025, eq. 1: anatomy V-1 positives, B-1 negatives; contrast the reverse."""
    same_subject, same_view = view_pairs(subjects, views)
    assert same_subject.shape == (subjects * views,) * 2
    assert set(same_subject.sum(1).tolist()) == {views - 1}
    assert set(same_view.sum(1).tolist()) == {subjects - 1}
    assert not (same_subject & same_view).any()
    assert not same_subject.diagonal().any() and not same_view.diagonal().any()


def test_two_scanners_show_one_view_in_two_contrasts():
    """Subjects are compared within a scanner; the pairs of one subject stay."""
    same_subject, same_view = view_pairs(3, 2, scanners=torch.tensor([0, 1, 0]))
    everyone = view_pairs(3, 2)
    assert torch.equal(same_subject, everyone[0])
    assert same_view.nonzero().tolist() == [[0, 4], [1, 5], [4, 0], [5, 1]]
    assert (everyone[1] & same_view).sum() == same_view.sum() < everyone[1].sum()


def test_loss_of_perfect_clusters_is_zero_and_of_swapped_ones_large():
    same_subject, same_view = view_pairs(3, 4)
    clusters = torch.eye(3).repeat_interleave(4, 0)  # every subject its own direction
    assert float(contrastive_loss(clusters, same_subject, same_view)) == pytest.approx(0, abs=1e-5)
    swapped = float(contrastive_loss(clusters, same_view, same_subject))
    assert swapped == pytest.approx(1 / 0.07 + math.log(3 / 2), rel=1e-3)


def test_loss_by_hand():
    same_subject, same_view = view_pairs(2, 2)
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0], [-1.0, 0.0]])
    unit = torch.nn.functional.normalize(z, dim=1)
    similar = torch.exp(unit @ unit.T / 0.5)
    by_hand = 0.0
    for i, (good, bad) in enumerate([(1, 2), (0, 3), (3, 0), (2, 1)]):
        by_hand -= math.log(similar[i, good] / (similar[i, good] + similar[i, bad])) / 4
    assert float(contrastive_loss(z, same_subject, same_view, 0.5)) == pytest.approx(
        by_hand, rel=1e-5
    )


def test_without_positives_there_is_no_loss_but_a_gradient_of_zero():
    z = torch.randn(3, 4, requires_grad=True)
    same_subject, same_view = view_pairs(3, 1)
    loss = contrastive_loss(z, same_subject, same_view)
    loss.backward()
    assert float(loss.detach()) == 0 and not z.grad.any()
