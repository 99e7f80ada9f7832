"""IHF-Harmony: an invertible hierarchy flow whose features take on the target's statistics.

Zhu et al. 2026, "IHF-Harmony: Multi-Modality Magnetic Resonance Images Harmonization using
Invertible Hierarchy Flow Model". Slabs of three slices pass the flow of
`harmonizer.deep.networks.coupling`; artefact-aware normalization gives its features the statistics
that
the target's feature statistics z_s call for; the flow is then run backwards.

Theirs (preset ``paper``, and by what it is said): three slices as channels, Adam 1e-4, batch 32,
unpaired images of different sites, L = L_ac + 2 L_art with k = 0.9. VGG-19 gives z_s and features.

Ours, each a setting, and why:

* `fusion` ``exact``: as printed the way back is not the inverse of the way forth (coupling.py);
* features are a pyramid of fixed random filters: VGG's weights cannot be downloaded where patients'
  images are. `tiny` to `paper` differ in its widths alone; `vgg` names a file with the weights;
* z_s counts each tissue alike where tissues are known
(`harmonizer.methods.learned.network_input`): a brain with
  wide ventricles is no scanner;
* statistics, of z, of z_s and of the losses, are taken over the brain of the whole volume: a batch
  is a few people with `slices` slices each, spread over the brain and at the same heights in
  source and target; a volume is harmonized in two passes. Per-slice statistics make slices flicker;
* `anchored`: AAN says how target and source differ, so that an image is unchanged, exactly, where
  its own statistics are the target's;
* the three predictions of a slice (as lower, middle and upper one of a slab) are averaged;
* besides real pairs (`share_sites`), simulated ones: a person under one contrast view is to become
  the same person under the view of another person. There the truth is known (`weight_truth`), which
  unpaired losses only hint at. Pairs of one site (`share_same`) are to stay as they were scanned
  (`weight_identity`), also where the null moved them;
* anatomy is compared after equalisation, so that L_ac and L_art do not pull at the same contrast;
* `start`: the image is first brought to the target by local tissue matching
  (harmonizer.methods.learned.base); slabs, in training, likewise
  (harmonizer.methods.learned.patch_baseline);
* one network for several modalities: each one's code stands beside z_s (the paper does not say how
  its network is told), and no pair is of two (harmonizer.methods.learned.fit);
* `keep_same_site`: a scan whose `source` is the target site is returned as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....contrast.intensity import IntensityScale
from ....deep.training.task import Batch, Game, Player
from ....volume import Volume
from ...base import BRIGHTEST, Capabilities, Known
from ...ranges import at_least, at_most
from ...target import Target
from ..base import NONE, SIMPLE, LearnedBackend, LearnedConfig, modalities_of
from ..network_input import Shown, balanced
from ..patch_baseline import matched_by_histogram, matched_by_tissue

if TYPE_CHECKING:
    import torch

    from ....deep.augmentation.contrast import View
    from ....deep.networks.coupling import FlowNetwork
    from ....deep.networks.pyramid import FeaturePyramid
    from ....deep.networks.vgg import VggFeatures
    from ....deep.training.data import VolumeStore

__all__ = ["Ihf", "IhfConfig"]

KINDS = ("view", "site", "same")
WIDEST_PYRAMID = 4096  # its filters are made of a seed, whatever a stranger's config claims


@dataclass(frozen=True)
class IhfConfig(LearnedConfig):
    """Settings of IHF; the defaults are the preset ``small``.

    Attributes
    ----------
    squeezes, splits, hidden : of each block of the flow (`harmonizer.deep.networks.coupling.Stage`)
    fusion : ``exact`` or ``paper``
    instance : instance norm in the affine-nets (the paper's base); else within each place
    anchored : AAN is the identity for the image's own statistics (the paper: not)
    style : width of AAN's projections
    neighbours : slices on either side in a slab
    pyramid, pyramid_seed : widths and seed of the fixed features
    vgg : safetensors file with VGG-19, whose features take the pyramid's place (paper), or ``none``
    pairs, slices : in a batch; slices of each volume
    share_sites, share_same : of real pairs of two sites and of one; the rest is simulated
    weight_anatomy, weight_artefact, kept : of the paper's losses; `kept` is its k
    weight_identity : on pairs of one site
    weight_truth, weight_steps : on simulated pairs; intensities, and steps between neighbours
    patch, patches, points : of the anatomy loss
    gamma, bias, blur, noise : largest strengths of simulated contrasts
    learning_rate, clip : of Adam
    keep_same_site : a scan of the target site is returned as it is
    batch_slices : at once in inference; changes memory alone
    """

    squeezes: tuple[int, ...] = (2, 2)
    splits: tuple[int, ...] = (4, 2)
    hidden: tuple[int, ...] = (48, 96)
    fusion: str = "exact"
    instance: bool = False
    anchored: bool = True
    style: int = 64
    neighbours: int = 1
    pyramid: tuple[int, ...] = (16, 32, 48, 64)
    pyramid_seed: int = 0
    vgg: str = NONE
    pairs: int = 2
    slices: int = 4
    share_sites: float = 0.25
    share_same: float = 0.1
    weight_anatomy: float = 1.0
    weight_artefact: float = 2.0
    kept: float = 0.9
    weight_identity: float = 1.0
    weight_truth: float = 10.0
    weight_steps: float = 5.0
    patch: int = 32
    patches: int = 4
    points: int = 64
    gamma: float = 0.5
    bias: float = 0.2
    blur: float = 0.6
    noise: float = 0.03
    learning_rate: float = 1e-3
    clip: float = 1.0
    keep_same_site: bool = True
    batch_slices: int = 8

    def __post_init__(self) -> None:
        from ....deep.networks.coupling import FUSIONS

        super().__post_init__()
        at_least(self, 1, "hidden", "style", "pyramid", "patch", "patches", "points",
                 "batch_slices")
        at_most(self, WIDEST_PYRAMID, "pyramid")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {FUSIONS}, got {self.fusion!r}.")
        if not len(self.squeezes) == len(self.splits) == len(self.hidden) > 0:
            raise ValueError("squeezes, splits and hidden need one number for each block.")
        if min(*self.squeezes, *self.splits, self.pairs, self.slices) < 1:
            raise ValueError("squeezes, splits, pairs and slices are 1 or more.")
        at_least(self, 0, "neighbours")
        if self.vgg != NONE and self.neighbours != 1:
            raise ValueError("VGG sees three slices: vgg needs neighbours=1.")
        if not 0 <= self.share_sites + self.share_same <= 1:
            raise ValueError("share_sites and share_same add up to 1 at most.")
        if not 0 < self.kept <= 1:
            raise ValueError(f"kept lies in (0, 1], got {self.kept}.")


TINY = dict(
    start=SIMPLE,
    squeezes=(2,), splits=(2,), hidden=(8,), style=8, pyramid=(4, 8), pairs=2, slices=2, patch=8,
    patches=2, points=8, steps=20, log_every=10, validate_every=20, validation_cases=1,
    save_every=100, learning_rate=1e-3,
)
PAPER = dict(
    squeezes=(1, 2), splits=(10, 4), hidden=(64, 128), instance=True, anchored=False, style=128,
    pyramid=(64, 128, 256, 512), pairs=4, slices=8, share_sites=1.0, share_same=0.0,
    weight_identity=0.0, weight_truth=0.0, weight_steps=0.0, learning_rate=1e-4, steps=100_000,
    validate_every=2_000, save_every=2_000, log_every=200,
)


class Ihf(LearnedBackend):
    """Unseen scanners on both sides: the network knows statistics, not sites."""

    name = "ihf"
    reference = ("Zhu et al. 2026, IHF-Harmony: Multi-Modality Magnetic Resonance Images "
                 "Harmonization using Invertible Hierarchy Flow Model")
    summary = ("Slabs of slices were decomposed by an invertible hierarchy flow, its features were "
               "given the statistics that the target's features call for, and it was run back.")
    capabilities = Capabilities(trained=True, modalities=True)
    wants_tissues = True
    Config = IhfConfig
    presets = {"tiny": {"preset": "tiny", **TINY}, "small": {"preset": "small"},
               "paper": {"preset": "paper", **PAPER}}

    @property
    def multiple(self) -> tuple[int, int, int]:  # type: ignore[override]
        """In-plane sides of the canvas are multiples of all squeezes and halvings."""
        c = self.config
        side = int(np.lcm(np.prod(c.squeezes), 2 ** (len(self._widths) - 1)))
        return side, side, 1

    def _build(self) -> dict[str, Any]:
        from ....deep.networks.coupling import FlowNetwork, Stage
        from ....deep.networks.vgg import VggFeatures

        c = self.config
        stages = tuple(Stage(*stage) for stage in zip(c.squeezes, c.splits, c.hidden))
        flow = FlowNetwork(2 * c.neighbours + 1, stages, 2 * sum(self._widths), c.style,
                           c.fusion, c.instance, c.anchored, self._codes)
        return {"flow": flow, "vgg": VggFeatures()} if c.vgg != NONE else {"flow": flow}

    def check_given(self) -> None:
        """Can VGG's weights be read, where they are asked for? InputError if not."""
        if self.config.vgg != NONE:
            from ....deep.networks.vgg import read_vgg

            read_vgg(Path(self.config.vgg))

    def _take_given(self) -> None:
        from ....deep.networks.vgg import read_vgg

        if self.config.vgg != NONE:
            self.networks_["vgg"].load_state_dict(read_vgg(Path(self.config.vgg)))

    @property
    def _codes(self) -> int:
        """Size of a modality's code: nothing where there is one modality."""
        return len(self.modalities_) if len(self.modalities_) > 1 else 0

    @property
    def _widths(self) -> tuple[int, ...]:
        """Channels of the features' levels."""
        from ....deep.networks.vgg import WIDTHS

        return WIDTHS if self.config.vgg != NONE else self.config.pyramid

    @property
    def _pyramid(self) -> FeaturePyramid | VggFeatures:
        from ....deep.networks.pyramid import FeaturePyramid

        c = self.config
        if c.vgg != NONE:
            return self.networks_["vgg"].to(self.resources.device)
        return FeaturePyramid(2 * c.neighbours + 1, c.pyramid, c.pyramid_seed).to(
            self.resources.device)

    def _game(self, store: VolumeStore, trained: tuple[int, ...], seed: int) -> Game:
        return _IhfGame(self.config, self.networks_, self._pyramid, store, trained, seed)

    # Styles ---------------------------------------------------------------------------------

    def _describe(self, shown: Shown) -> dict[str, np.ndarray]:
        return {"z_s": self._artefact(shown)}

    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {"z_s": np.mean([s["z_s"] for s in summaries], axis=0, dtype=np.float64
                               ).astype(np.float32)}

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        super()._check_style(style)
        z_s, size = np.asarray(style["z_s"]), 2 * sum(self._widths)
        if z_s.shape != (size,) or not (np.abs(z_s) < BRIGHTEST).all():
            raise ValueError(f"expected {size} statistics of features")

    def _artefact(self, shown: Shown) -> np.ndarray:
        """(2 C,) means and spreads of the pyramid's channels over the brain (eq. 1)."""
        import torch

        pyramid = self._pyramid
        with torch.no_grad():
            sums = _summed(_moments(pyramid(x), w)
                           for _, x, w in self._slabs(shown, shown.weights()))
        return _embedding(sums)[0].cpu().numpy()

    # Change ---------------------------------------------------------------------------------

    def _harmonize(self, volume: Volume, target: Target, known: Known,
                   rng: np.random.Generator) -> Volume:
        same = target.kind == "site" and known.source == target.label
        if same and self.config.keep_same_site:
            return volume
        return super()._harmonize(volume, target, known, rng)

    def _change(self, shown: Shown, style: Mapping[str, np.ndarray], rng: np.random.Generator
                ) -> np.ndarray:
        import torch

        flow, device = self.networks_["flow"], self.resources.device
        code = _code(str(self.modality_), self.modalities_)
        goal, own = (torch.from_numpy(np.asarray([*z, *code], np.float32))[None].to(device)
                     for z in (style["z_s"], self._artefact(shown)))
        change, seen = np.zeros(shown.unit.shape, np.float32), np.zeros(shown.unit.shape[2])
        with torch.no_grad():
            sums = _summed(flow.statistics(flow.encode(x), m)
                           for _, x, m in self._slabs(shown, shown.mask))
            for places, x, _ in self._slabs(shown, shown.mask):
                n = len(x)
                after = flow.decode(flow.encode(x), [s.expand(n, -1) for s in sums],
                                    goal.expand(n, -1), own.expand(n, -1))
                _overlay(change, seen, (after - x).cpu().numpy(), places)
        return change / np.maximum(seen, 1).astype(np.float32)

    def _slabs(self, shown: Shown, weights: np.ndarray
               ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """(places (n, 2 neighbours + 1), slabs (n, 2 neighbours + 1, I, J), weights (n, 1, I, J)).

        Of every slice with brain; beyond the volume stands its last slice again.
        """
        import torch

        device, around = self.resources.device, self.config.neighbours
        unit = shown.unit
        middles = np.flatnonzero(shown.mask.any(axis=(0, 1)))
        for first in range(0, len(middles), self.config.batch_slices):
            at = middles[first:first + self.config.batch_slices]
            places = np.clip(at[:, None] + np.arange(-around, around + 1), 0, unit.shape[2] - 1)
            x = np.ascontiguousarray(unit[:, :, places].transpose(2, 3, 0, 1), np.float32)
            w = np.ascontiguousarray(weights[:, :, at].transpose(2, 0, 1)[:, None], np.float32)
            yield places, torch.from_numpy(x).to(device), torch.from_numpy(w).to(device)


class _IhfGame(Game):
    """One player, the flow, on the paper's losses and on simulated pairs whose truth is known."""

    def __init__(self, config: IhfConfig, networks: dict[str, Any],
                 pyramid: FeaturePyramid | VggFeatures, store: VolumeStore,
                 trained: tuple[int, ...], seed: int) -> None:
        from ....deep.augmentation.contrast import ContrastSettings

        self.config, self.networks, self.identity = config, networks, {}
        self.pyramid, self.store = pyramid, store
        self.seed, self.modalities = seed, modalities_of(store.scans)
        each = ([i for i in trained if store.scans[i].modality == m] for m in self.modalities)
        self.trained = [scans for scans in each if scans]
        c = config
        self.dirty = ContrastSettings(gamma=c.gamma, bias=c.bias, blur=c.blur, noise=c.noise)
        self.clean = ContrastSettings(gamma=c.gamma, bias=0.0)

    def players(self) -> tuple[Player, ...]:
        """The flow, alone."""
        return (Player("ihf", ("flow",), self.loss, self.config.learning_rate,
                       clip=self.config.clip),)

    # Batches --------------------------------------------------------------------------------

    def batch(self, step: int, rank: int) -> dict[str, Any]:
        """Pairs one after another, `slices` slabs each: (P S, 2n + 1, I, J).

        source: after the null; goal: the target person's slabs; truth: the source person as the
        target's scanner shows it, where that is known (`view`: simulated; `same`: as it is); all in
        the network's unit. view, site, same: (P,) one where the pair is of that kind; code: (P, m)
        of its modality.
        """
        import torch

        rng = np.random.default_rng([self.seed, step, rank, 4])
        pairs = [self._pair(rng) for _ in range(self.config.pairs)]
        drawn = {key: torch.cat([pair[key] for pair in pairs]) for key in pairs[0]}
        return {**drawn, "pairs": len(pairs)}

    def _pair(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        import torch

        kind, one, two = self._draw(rng)
        x, mask, places = self._slabs(rng, one)
        y, mask_goal, _ = self._slabs(rng, two, places)
        source, truth, goal = self._views(rng, x, mask, y, mask_goal) if kind == "view" \
            else (x, x, y)
        shares = [self._shares(i, places) for i in (one, two)] if self.store.has_tissues else None
        source, truth, goal = self._started(source, mask, truth, goal, mask_goal, shares)
        weights = [m if shares is None else _balanced(share, m)
                   for m, share in zip((mask, mask_goal), shares or (None, None))]
        return {"source": source, "truth": truth, "mask": mask, "goal": goal,
                "mask_goal": mask_goal, "weight": weights[0], "weight_goal": weights[1],
                "code": torch.tensor([_code(self.store.scans[one].modality, self.modalities)]),
                **{k: torch.tensor([float(k == kind)]) for k in KINDS}}

    def _draw(self, rng: np.random.Generator) -> tuple[str, int, int]:
        """(kind, source, target): indices of scans of two people (as far as there are two) in one
        modality, each modality as often as the others.
        """
        from ....deep.training.data import draw_scans

        c, scans = self.config, self.store.scans
        simulated = max(1 - c.share_sites - c.share_same, 0.0)  # 0.9 and 0.1 leave -3e-17
        kind = KINDS[rng.choice(3, p=[simulated, c.share_sites, c.share_same])]
        trained = self.trained[rng.integers(len(self.trained))]
        one = trained[draw_scans(rng, [scans[i] for i in trained], 1)[0]]
        others = [i for i in trained if scans[i].subject != scans[one].subject]
        away = [i for i in others if scans[i].site != scans[one].site]
        home = [i for i in others if scans[i].site == scans[one].site]
        pool = {"view": others, "site": away or others, "same": home}[kind] or [one]
        if kind == "site" and not away:
            kind = "same"
        return kind, one, pool[draw_scans(rng, [scans[i] for i in pool], 1)[0]]

    def _slabs(self, rng: np.random.Generator, index: int, places: np.ndarray | None = None
               ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """(S, 2n + 1, I, J) slabs and masks, one from each of S parts of the brain's height."""
        import torch

        from ....deep.training.data import SlabDraw

        draw = SlabDraw(self.store, (index,), 1, 0, neighbours=self.config.neighbours)
        if places is None:
            good = draw.slices(index)
            cuts = np.linspace(0, len(good), self.config.slices + 1)
            places = np.array([good[min(int(rng.uniform(a, b)), len(good) - 1)]
                               for a, b in zip(cuts, cuts[1:])])
        slabs = [draw.slab(index, int(place)) for place in places]
        return (torch.from_numpy(np.stack([s[0] for s in slabs])),
                torch.from_numpy(np.stack([s[1] for s in slabs])), places)

    def _shares(self, index: int, places: np.ndarray) -> np.ndarray:
        """(3, I, J, S (2n + 1)) float32 shares of the tissues in these slabs, 0..1."""
        from ....deep.training.data import SlabDraw

        draw = SlabDraw(self.store, (index,), 1, 0, neighbours=self.config.neighbours)
        slabs = np.concatenate([draw.shares(index, int(place)) for place in places], axis=1)
        return slabs.transpose(0, 2, 3, 1) / np.float32(255)

    def _views(self, rng: np.random.Generator, x: torch.Tensor, mask: torch.Tensor,
               y: torch.Tensor, mask_y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Source under one scanner, truth and target under another."""
        from ....deep.augmentation.contrast import draw_view

        one, two = draw_view(rng, self.dirty), draw_view(rng, self.clean)
        return _seen(one, x, mask), _seen(two, x, mask), _seen(two, y, mask_y)

    def _started(self, x: torch.Tensor, mask: torch.Tensor, truth: torch.Tensor, y: torch.Tensor,
                 mask_y: torch.Tensor, shares: list[np.ndarray] | None
                 ) -> tuple[torch.Tensor, ...]:
        """The three as `_harmonize` shows them: source after a first guess, truth in its unit."""
        if self.config.start == NONE:
            return x, truth, y
        source, target = _as_volume(x, mask), _as_volume(y, mask_y)
        before, goal = source.in_mask(), target.in_mask()
        if min(np.ptp(before), np.ptp(goal)) <= 0:
            return x, truth, y
        first = source.data.copy()
        first[source.mask] = matched_by_histogram(before, goal) if shares is None else \
            matched_by_tissue(before, shares[0][:, source.mask], goal, shares[1][:, target.mask])
        scale = IntensityScale.of(first[source.mask])
        own = IntensityScale.of(goal)
        return (_in_unit(first, scale, mask), _in_unit(_data(truth), scale, mask),
                _in_unit(target.data, own, mask_y))

    # Loss -----------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The paper's two between sites, and the truth where it is known; each pair weighs alike.
        """
        from ....deep.losses.within import absolute, steps

        c, mask, count = self.config, batch["mask"], batch["pairs"]
        self.pyramid = self.pyramid.to(mask.device)
        z_s = self._embedded(batch["goal"], batch["weight_goal"], batch["code"])
        after = self._translated(batch, z_s)
        away = absolute(after, batch["truth"], mask).unflatten(0, (count, -1)).mean(1)
        edges = steps(after, batch["truth"], mask).unflatten(0, (count, -1)).mean(1)
        return {"truth": c.weight_truth * (away * batch["view"]).mean(),
                "steps": c.weight_steps * (edges * batch["view"]).mean(),
                "identity": c.weight_identity * (away * batch["same"]).mean(),
                **self._between_sites(batch, after)}

    def _translated(self, batch: Batch, z_s: torch.Tensor) -> torch.Tensor:
        """(P S, 2n + 1, I, J) slabs with the goal's artefacts; statistics are those of each pair.
        """
        flow: FlowNetwork = self.networks["flow"]
        x, mask, count = batch["source"], batch["mask"], batch["pairs"]
        middle = mask[:, self._middle]
        encoded = flow.encode(x)
        sums = [_pooled(s, count) for s in flow.statistics(encoded, middle)]
        own = self._embedded(x, batch["weight"], batch["code"])
        spread = len(x) // count
        return flow.decode(encoded, [_repeated(s, spread) for s in sums], _repeated(z_s, spread),
                           _repeated(own, spread))

    @property
    def _middle(self) -> slice:
        """The channel of a slab's own slice."""
        return slice(self.config.neighbours, self.config.neighbours + 1)

    def _embedded(self, x: torch.Tensor, weight: torch.Tensor, code: torch.Tensor
                  ) -> torch.Tensor:
        """(P, 2 C + m) statistics z_s of the slabs of each pair, and its modality's code."""
        import torch

        found = _moments(self.pyramid(x), weight[:, self._middle])
        return torch.cat([_embedding([_pooled(s, len(code)) for s in found]), code], dim=1)

    def _between_sites(self, batch: Batch, after: torch.Tensor) -> dict[str, torch.Tensor]:
        """Anatomy as the source's and artefacts as the goal's (eq. 3, 4), of pairs of two sites."""
        from ....deep.losses.artefact import artefact

        c, count = self.config, batch["pairs"]
        chosen = batch["site"].nonzero()[:, 0]
        zero = after.sum() * 0
        if not len(chosen) or not (c.weight_anatomy or c.weight_artefact):
            return {"anatomy": zero, "artefact": zero}
        x, y, mask, mask_goal, ours = (
            t.unflatten(0, (count, -1))[chosen].flatten(0, 1)
            for t in (batch["source"], batch["goal"], batch["mask"], batch["mask_goal"], after))
        ours = ours.where(mask > 0, ours.new_tensor(-1.0))
        n, share = len(chosen), len(chosen) / count
        levels = min(3, len(self.pyramid.widths))
        stats = [self._statistics(image, where, n, levels)
                 for image, where in ((ours, mask), (y, mask_goal))]
        return {"anatomy": c.weight_anatomy * share * self._anatomy(x, ours, mask, n),
                "artefact": c.weight_artefact * share * artefact(*stats, c.kept).mean()}

    def _statistics(self, x: torch.Tensor, mask: torch.Tensor, count: int, levels: int
                    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        from ....deep.networks.coupling import mean_and_spread

        found = _moments(self.pyramid(x, levels), mask[:, self._middle])
        return [mean_and_spread(_pooled(s, count)) for s in found]

    def _anatomy(self, x: torch.Tensor, ours: torch.Tensor, mask: torch.Tensor, count: int
                 ) -> torch.Tensor:
        """L_ac of the second level and those above it, equalised volume by volume."""
        import torch

        from ....deep.losses.spatial_correlation import draw_points, equalised, spatial_correlation

        c = self.config
        places = draw_points(mask[:, self._middle], c.patch, c.patches, c.points)
        features = []
        for image in (x, ours):
            even = torch.cat([equalised(i, m) for i, m in zip(image.chunk(count),
                                                              mask.chunk(count))])
            features.append(self.pyramid(even)[1:])
        return spatial_correlation(*features, places, tuple(x.shape[2:]))  # type: ignore[arg-type]


# Statistics ---------------------------------------------------------------------------------


def _moments(features: list[torch.Tensor], mask: torch.Tensor) -> list[torch.Tensor]:
    from ....deep.networks.coupling import moments

    return [moments(f, mask) for f in features]


def _summed(parts: Iterable[list[torch.Tensor]]) -> list[torch.Tensor]:
    """(1, ...) sums over all slices of each level's moments."""
    total: list[torch.Tensor] = []
    for part in parts:
        sums = [p.double().sum(0, keepdim=True) for p in part]
        total = [a + b for a, b in zip(total, sums)] if total else sums
    return [t.float() for t in total]


def _pooled(sums: torch.Tensor, count: int) -> torch.Tensor:
    """(P S, ...) moments of slices -> (P, ...) of volumes."""
    return sums.unflatten(0, (count, -1)).sum(1)


def _repeated(sums: torch.Tensor, times: int) -> torch.Tensor:
    """(P, ...) -> (P S, ...)."""
    return sums.repeat_interleave(times, 0)


def _embedding(sums: list[torch.Tensor]) -> torch.Tensor:
    """z_s of eq. 1: the means of all levels, then their spreads."""
    import torch

    from ....deep.networks.coupling import mean_and_spread

    both = [mean_and_spread(s) for s in sums]
    return torch.cat([mean for mean, _ in both] + [spread for _, spread in both], dim=1)


def _code(modality: str, modalities: tuple[str, ...]) -> list[float]:
    """One-hot; nothing where there is one modality."""
    return [float(modality == other) for other in modalities] if len(modalities) > 1 else []


# Slabs --------------------------------------------------------------------------------------


def _overlay(change: np.ndarray, seen: np.ndarray, slabs: np.ndarray, places: np.ndarray) -> None:
    """Add (n, 2n + 1, I, J) changes at their places (n, 2n + 1) and count them."""
    for slab, at in zip(slabs, places):
        for part, place in zip(slab, at):
            change[:, :, place] += part
            seen[place] += 1


def _seen(view: View, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Every slice of (S, 2n + 1, I, J) slabs under a view."""
    shown = view.apply(x.flatten(0, 1)[:, None], mask.flatten(0, 1)[:, None])
    return shown[:, 0].unflatten(0, tuple(x.shape[:2]))


def _data(x: torch.Tensor) -> np.ndarray:
    """(I, J, S (2n + 1)) intensities 0..2 of (S, 2n + 1, I, J) slabs in [-1, 1]."""
    return np.ascontiguousarray(x.flatten(0, 1).numpy().transpose(1, 2, 0)) + np.float32(1)


def _balanced(shares: np.ndarray, mask: torch.Tensor) -> torch.Tensor:
    """(S, 2n + 1, I, J) weights of slabs by which each tissue of their person counts alike."""
    import torch

    weights = balanced(shares, _data(mask) > 1.5).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(weights)).unflatten(0, tuple(mask.shape[:2]))


def _as_volume(x: torch.Tensor, mask: torch.Tensor) -> Volume:
    return Volume(_data(x), np.eye(4), _data(mask) > 1.5)


def _in_unit(data: np.ndarray, scale: IntensityScale, mask: torch.Tensor) -> torch.Tensor:
    """The inverse of `_data` in the unit of `scale`, clipped, background -1."""
    import torch

    unit = np.clip(scale.to_unit(data), -1, 1).transpose(2, 0, 1)
    slabs = torch.from_numpy(np.ascontiguousarray(unit)).unflatten(0, tuple(mask.shape[:2]))
    return slabs.where(mask > 0, torch.tensor(-1.0))
