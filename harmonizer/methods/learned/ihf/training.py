"""Training of IHF-Harmony: real pairs of sites, and simulated pairs whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ....contrast.intensity import IntensityScale
from ....deep.augmentation.contrast import ContrastSettings, View, draw_view
from ....deep.losses.artifact import artifact_loss
from ....deep.losses.masked import gradient_l1, l1
from ....deep.losses.spatial_correlation import draw_points, equalize, spatial_correlation_loss
from ....deep.networks.hierarchy_flow import mean_and_std
from ....deep.training.data import BACKGROUND, MAX_PROBABILITY, VolumeStore, sample_scans
from ....deep.training.task import Batch, OptimizerGroup, TrainingTask
from ....volume import Volume
from ..config import NONE
from ..network_input import tissue_balanced_weights
from ..patch_baseline import match_patch
from .config import NEIGHBORS, IhfConfig
from .features import Features, artifact_statistics, feature_moments, modality_code, sum_volumes

__all__ = ["IhfTask", "to_network_unit"]

PAIR_KINDS = ("view", "site", "same")  # simulated, of two sites, of one site
MIDDLE = slice(NEIGHBORS, NEIGHBORS + 1)  # channel of a slab's own slice
MAX_ARTIFACT_LEVELS = 3  # levels of the features in the artifact loss

Tissues = list[np.ndarray] | None


class IhfTask(TrainingTask):
    """The flow, trained on the paper's losses and on simulated pairs.

    Parameters
    ----------
    config : IhfConfig
    networks : dict of str to Module
        ``flow``, and ``vgg`` if it is used.
    features : Module
        Fixed features.
    store : VolumeStore
    scans : tuple of int
        Indices of the scans that are trained on.
    seed : int
    """

    supports_workers = True

    def __init__(self, config: IhfConfig, networks: dict[str, Any], features: Features,
                 store: VolumeStore, scans: tuple[int, ...], seed: int) -> None:
        self.config, self.networks, self.identity = config, networks, {}
        self.features, self.store, self.seed = features, store, seed
        self.modalities = tuple(sorted({scan.modality for scan in store.scans}))
        by_modality = ([i for i in scans if store.scans[i].modality == m] for m in self.modalities)
        self.scans = [indices for indices in by_modality if indices]
        c = config
        self.source_scanner = ContrastSettings(gamma=c.gamma, bias=c.bias, blur=c.blur,
                                               noise=c.noise)
        self.target_scanner = ContrastSettings(gamma=c.gamma, bias=0.0)

    def optimizer_groups(self) -> tuple[OptimizerGroup, ...]:
        """See `TrainingTask.optimizer_groups`."""
        return (OptimizerGroup("ihf", ("flow",), self.loss, self.config.learning_rate,
                               clip=self.config.clip),)

    # Batches --------------------------------------------------------------------------------

    def batch(self, step: int, rank: int) -> dict[str, Any]:
        """Return pairs one after another, `slices` slabs each: (P S, 3, I, J).

        Returns
        -------
        dict
            ``source``: slabs after the baseline; ``target``: slabs of the target subject;
            ``truth``: the source subject under the target's scanner, where it is known; all in the
            networks' unit. ``view``, ``site``, ``same``: (P,) 1 where the pair is of that kind;
            ``code``: (P, m) of its modality.
        """
        rng = np.random.default_rng([self.seed, step, rank, 4])
        pairs = [self._make_pair(rng) for _ in range(self.config.pairs)]
        drawn = {key: torch.cat([pair[key] for pair in pairs]) for key in pairs[0]}
        return {**drawn, "pairs": len(pairs)}

    def _make_pair(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        kind, one, two = self.draw_pair(rng)
        x, mask, places = self._slabs(rng, one)
        y, target_mask, _ = self._slabs(rng, two, places)
        source, truth, target = self._simulate(rng, x, mask, y, target_mask) if kind == "view" \
            else (x, x, y)
        tissues = [self._tissues(i, places) for i in (one, two)] if self.store.has_tissues \
            else None
        source, truth, target = self.apply_baseline(source, mask, truth, target, target_mask,
                                                    tissues)
        weights = [mask, target_mask]
        if tissues is not None:
            weights = [_balanced(tissue, m) for tissue, m in zip(tissues, weights)]
        code = modality_code(self.store.scans[one].modality, self.modalities)
        return {"source": source, "truth": truth, "mask": mask, "target": target,
                "target_mask": target_mask, "weight": weights[0], "target_weight": weights[1],
                "code": torch.tensor([code]),
                **{k: torch.tensor([float(k == kind)]) for k in PAIR_KINDS}}

    def draw_pair(self, rng: np.random.Generator) -> tuple[str, int, int]:
        """Draw a kind of pair, and the indices of its source and target scans.

        The scans are of two subjects (if there are two) and of one modality, each modality equally
        often. The scans of a simulated pair are of one site, so they have one contrast. The same
        simulated scanner then changes both, so the truth has the target's contrast.
        """
        c, scans = self.config, self.store.scans
        # 0.9 and 0.1 leave -3e-17
        simulated = max(1 - c.cross_site_fraction - c.same_site_fraction, 0.0)
        kind = PAIR_KINDS[rng.choice(3, p=[simulated, c.cross_site_fraction,
                                           c.same_site_fraction])]
        indices = self.scans[rng.integers(len(self.scans))]
        one = indices[sample_scans(rng, [scans[i] for i in indices], 1)[0]]
        others = [i for i in indices if scans[i].subject != scans[one].subject]
        away = [i for i in others if scans[i].site != scans[one].site]
        home = [i for i in others if scans[i].site == scans[one].site]
        pool = {"view": home, "site": away or others, "same": home}[kind] or [one]
        if kind == "site" and not away:
            kind = "same"
        return kind, one, pool[sample_scans(rng, [scans[i] for i in pool], 1)[0]]

    def _slabs(self, rng: np.random.Generator, index: int, places: np.ndarray | None = None
               ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Return (S, 3, I, J) slabs and masks, one from each of S parts of the brain's height."""
        if places is None:
            good = self.store.slices(index)
            cuts = np.linspace(0, len(good), self.config.slices + 1)
            places = np.array([good[min(int(rng.uniform(a, b)), len(good) - 1)]
                               for a, b in zip(cuts, cuts[1:])])
        slabs = [self.store.slab(index, int(place), NEIGHBORS) for place in places]
        return (torch.from_numpy(np.stack([s[0] for s in slabs])),
                torch.from_numpy(np.stack([s[1] for s in slabs])), places)

    def _tissues(self, index: int, places: np.ndarray) -> np.ndarray:
        """Return the tissue probabilities of slabs, (3, I, J, 3 S), float32, 0..1."""
        slabs = np.concatenate([self.store.slab_tissues(index, int(place), NEIGHBORS)
                                for place in places], axis=1)
        return slabs.transpose(0, 2, 3, 1) / np.float32(MAX_PROBABILITY)

    def _simulate(self, rng: np.random.Generator, x: torch.Tensor, mask: torch.Tensor,
                  y: torch.Tensor, y_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the source under one scanner, truth and target under another."""
        one, two = draw_view(rng, self.source_scanner), draw_view(rng, self.target_scanner)
        return _apply_view(one, x, mask), _apply_view(two, x, mask), _apply_view(two, y, y_mask)

    def apply_baseline(self, x: torch.Tensor, mask: torch.Tensor, truth: torch.Tensor,
                       y: torch.Tensor, y_mask: torch.Tensor, tissues: Tissues
                       ) -> tuple[torch.Tensor, ...]:
        """Apply the patch baseline to a pair.

        Parameters
        ----------
        x, mask, truth, y, y_mask : Tensor, shape (S, 3, I, J)
            Source, its mask, truth, target and its mask.
        tissues : list of ndarray, optional
            Tissue probabilities of source and target.

        Returns
        -------
        source, truth, target : Tensor, shape (S, 3, I, J)
            As at inference: source after the baseline, and truth in its unit.
        """
        if self.config.baseline == NONE:
            return x, truth, y
        source, target = _to_volume(x, mask), _to_volume(y, y_mask)
        before, after = source.in_mask(), target.in_mask()
        if min(np.ptp(before), np.ptp(after)) <= 0:
            return x, truth, y
        first = source.data.copy()
        first[source.mask] = match_patch(before, after, None if tissues is None else (
            tissues[0][:, source.mask], tissues[1][:, target.mask]))
        scale = IntensityScale.of(first[source.mask])
        return (to_network_unit(first, scale, mask), to_network_unit(_to_data(truth), scale, mask),
                to_network_unit(target.data, IntensityScale.of(after), y_mask))

    # Loss -----------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute the paper's losses between sites, and L1 where the truth is known."""
        c, mask, count = self.config, batch["mask"], batch["pairs"]
        self.features = self.features.to(mask.device)
        target_s = self._statistics_of(batch["target"], batch["target_weight"], batch["code"])
        after = self._translate(batch, target_s)
        error = l1(after, batch["truth"], mask).unflatten(0, (count, -1)).mean(1)
        gradient = gradient_l1(after, batch["truth"], mask).unflatten(0, (count, -1)).mean(1)
        return {"truth": c.truth_weight * (error * batch["view"]).mean(),
                "gradient_l1": c.gradient_weight * (gradient * batch["view"]).mean(),
                "identity": c.identity_weight * (error * batch["same"]).mean(),
                **self._cross_site_losses(batch, after)}

    def _translate(self, batch: Batch, target_s: torch.Tensor) -> torch.Tensor:
        """Return (P S, 3, I, J) slabs with the target's artifacts; statistics are of each pair."""
        flow = self.networks["flow"]
        x, mask, count = batch["source"], batch["mask"], batch["pairs"]
        encoded = flow.encode(x)
        sums = [sum_volumes(s, count) for s in flow.statistics(encoded, mask[:, MIDDLE])]
        source_s = self._statistics_of(x, batch["weight"], batch["code"])
        repeats = len(x) // count
        return flow.decode(encoded, [s.repeat_interleave(repeats, 0) for s in sums],
                           target_s.repeat_interleave(repeats, 0),
                           source_s.repeat_interleave(repeats, 0))

    def _statistics_of(self, x: torch.Tensor, weight: torch.Tensor, code: torch.Tensor
                       ) -> torch.Tensor:
        """Return z_s of the slabs of each pair with the code of its modality, (P, 2 C + m)."""
        sums = feature_moments(self.features(x), weight[:, MIDDLE])
        z_s = artifact_statistics([sum_volumes(s, len(code)) for s in sums])
        return torch.cat([z_s, code], dim=1)

    def _cross_site_losses(self, batch: Batch, after: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the anatomy and artifact losses (eq. 3, 4) of pairs of two sites."""
        c, count = self.config, batch["pairs"]
        chosen = batch["site"].nonzero()[:, 0]
        zero = after.sum() * 0
        if not len(chosen) or not (c.anatomy_weight or c.artifact_weight):
            return {"anatomy": zero, "artifact": zero}
        x, y, mask, y_mask, output = (
            t.unflatten(0, (count, -1))[chosen].flatten(0, 1)
            for t in (batch["source"], batch["target"], batch["mask"], batch["target_mask"],
                      after))
        output = output.where(mask > 0, output.new_tensor(BACKGROUND))
        n, fraction = len(chosen), len(chosen) / count
        levels = min(MAX_ARTIFACT_LEVELS, len(self.features.widths))
        ours, theirs = (self._level_statistics(image, where, n, levels)
                         for image, where in ((output, mask), (y, y_mask)))
        artifact = artifact_loss(ours, theirs, c.kept_fraction).mean()
        return {"anatomy": c.anatomy_weight * fraction * self._anatomy_loss(x, output, mask, n),
                "artifact": c.artifact_weight * fraction * artifact}

    def _level_statistics(self, x: torch.Tensor, mask: torch.Tensor, count: int, levels: int
                          ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        sums = feature_moments(self.features(x, levels), mask[:, MIDDLE])
        return [mean_and_std(sum_volumes(s, count)) for s in sums]

    def _anatomy_loss(self, x: torch.Tensor, output: torch.Tensor, mask: torch.Tensor, count: int
                      ) -> torch.Tensor:
        """Compute L_ac of the second level and above, with `equalized` volume by volume."""
        c = self.config
        places = draw_points(mask[:, MIDDLE], c.patch, c.patches, c.points)
        features = []
        for image in (x, output):
            if c.equalized:
                image = torch.cat([equalize(i, m) for i, m in zip(image.chunk(count),
                                                                  mask.chunk(count))])
            features.append(self.features(image)[1:])
        return spatial_correlation_loss(features[0], features[1], places,
                                        (x.shape[2], x.shape[3]))


# Slabs --------------------------------------------------------------------------------------


def _apply_view(view: View, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Apply a view to every slice of (S, 3, I, J) slabs."""
    y = view.apply(x.flatten(0, 1)[:, None], mask.flatten(0, 1)[:, None])
    return y[:, 0].unflatten(0, tuple(x.shape[:2]))


def _to_data(x: torch.Tensor) -> np.ndarray:
    """Convert (S, 3, I, J) slabs in [-1, 1] to (I, J, 3 S) intensities 0..2."""
    return np.ascontiguousarray(x.flatten(0, 1).numpy().transpose(1, 2, 0)) + np.float32(1)


def _balanced(tissues: np.ndarray, mask: torch.Tensor) -> torch.Tensor:
    """Return the tissue-balanced weights of (S, 3, I, J) slabs."""
    weights = tissue_balanced_weights(tissues, _to_data(mask) > 1.5).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(weights)).unflatten(0, tuple(mask.shape[:2]))


def _to_volume(x: torch.Tensor, mask: torch.Tensor) -> Volume:
    return Volume(_to_data(x), np.eye(4), _to_data(mask) > 1.5)


def to_network_unit(data: np.ndarray, scale: IntensityScale, mask: torch.Tensor) -> torch.Tensor:
    """Convert (I, J, 3 S) intensities to (S, 3, I, J) slabs in [-1, 1], background -1."""
    unit = np.clip(scale.to_unit(data), -1, 1).transpose(2, 0, 1)
    slabs = torch.from_numpy(np.ascontiguousarray(unit)).unflatten(0, tuple(mask.shape[:2]))
    return slabs.where(mask > 0, torch.tensor(BACKGROUND))
