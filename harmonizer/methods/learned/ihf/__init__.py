"""IHF-Harmony: invertible hierarchy flow whose features take on the target's statistics.

Slabs of three slices pass the flow of `harmonizer.deep.networks.hierarchy_flow`. Artifact-aware
normalization gives its features the statistics that the target's feature statistics z_s call for;
the flow is then run backwards.

The preset ``paper`` has three slices as channels, Adam 1e-4, batch 32, unpaired slabs of different
sites with statistics of their own, VGG-19 features, the printed fusion, and L = L_ac + 2 L_art with
k = 0.9. docs/research/2026-12-paper-presets.md lists what still differs.

Differences of the other presets from the paper, each with a reason:

* `fusion` ``exact``: as printed, the reverse pass is not the inverse of the forward pass.
* Features are a pyramid of fixed random filters, because VGG's weights cannot be downloaded where
  patients' images are. `vgg` names a file with the weights.
* z_s counts each tissue equally where tissues are known (`network_input`): wide ventricles are
  anatomy, not contrast.
* Statistics, of z, of z_s and of the losses, are taken over the brain of the whole volume. A batch
  has a few subjects with `slices` slices each, spread over the brain and at the same heights in
  source and target; a volume is harmonized in two passes. Statistics per slice make slices flicker.
* `anchored`: the normalization depends on the difference of target and source, so that an image is
  unchanged, exactly, where its own statistics are the target's. The change is decode(target) -
  image, and no difference of two decoded images.
* The three predictions of a slice (as lower, middle and upper one of a slab) are averaged.
* Besides real pairs (`cross_site_fraction`) there are simulated ones: a subject under one contrast
  view is to become the same subject under the view of another subject of its site. There the truth
  is known (`truth_weight`), which unpaired losses only hint at. Pairs of one site
  (`same_site_fraction`) are to stay as they were scanned (`identity_weight`), also where the
  baseline changed them.
* Anatomy is compared after equalization, so that L_ac and L_art do not compete for contrast.
* The image is first harmonized by the baseline (`harmonizer.methods.learned.base`); slabs in
  training likewise (`harmonizer.methods.learned.patch_baseline`).
* One network serves several modalities: the code of the modality is appended to z_s, and no pair is
  of two (`harmonizer.methods.learned.fit`). The paper does not say how its network knows them.
* A scan of the target site is returned unchanged.

References
----------
Zhu et al. 2026, "IHF-Harmony: Multi-Modality Magnetic Resonance Images Harmonization using
Invertible Hierarchy Flow Model".
"""
