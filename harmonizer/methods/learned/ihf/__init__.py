"""IHF-Harmony: invertible hierarchy flow whose features take on the target's statistics.

Slabs of three slices pass forward through an invertible flow network
(`harmonizer.deep.networks.hierarchy_flow`). Artifact-aware normalization changes the mean and
standard deviation of the flow's features, as predicted from the target's feature statistics z_s.
The backward pass then gives the harmonized slab.

The preset ``paper`` has three slices as channels, Adam 1e-4 and batch 32. Slabs are unpaired, of
different sites, with statistics of their own. Features are those of VGG-19, the fusion is the
printed one, and L = L_ac + 2 L_art with k = 0.9. docs/research/2026-12-paper-presets.md lists what
still differs.

Differences of the other presets from the paper, each with a reason:

* `fusion` ``exact``: the reverse pass in the paper is not the inverse of the forward pass.
* Features are a pyramid of fixed random filters, because computers with patient data often cannot
  download the weights of VGG. `vgg` names a file with these weights.
* z_s counts each tissue equally where tissues are known (`network_input`): wide ventricles are
  anatomy, not contrast.
* Statistics, of z, of z_s and of the losses, are taken over the brain of the whole volume. A batch
  has a few subjects with `slices` slices each, spread over the brain and at the same heights in
  source and target; a volume is harmonized in two passes. Statistics per slice make slices flicker.
* `anchored`: the normalization depends on the difference of target and source. An image that has
  the statistics of the target is not changed at all. The change is decode(target) - image, not a
  difference of two decoded images.
* The three predictions of a slice (as lower, middle and upper one of a slab) are averaged.
* Besides real pairs (`cross_site_fraction`) there are simulated pairs. A subject in one simulated
  contrast is mapped to the same subject in the contrast of another subject of its site, so the
  truth is known (`truth_weight`). For pairs of one site (`same_site_fraction`) the truth is the
  original scan (`identity_weight`), also if the baseline changed it.
* Anatomy is compared after equalization, so that L_ac and L_art do not compete for contrast.
* The image is first harmonized by the baseline (`harmonizer.methods.learned.base`); slabs in
  training likewise (`harmonizer.methods.learned.patch_baseline`).
* One network is used for several modalities. A code of the modality is appended to z_s, and both
  scans of a pair have one modality (`harmonizer.methods.learned.fit`). The paper does not state how
  its network distinguishes modalities.
* A scan of the target site is returned unchanged.

References
----------
Zhu et al. 2026, "IHF-Harmony: Multi-Modality Magnetic Resonance Images Harmonization using
Invertible Hierarchy Flow Model".
"""
