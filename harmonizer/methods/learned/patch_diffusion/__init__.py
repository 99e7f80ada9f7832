"""Patch diffusion: a 3D diffusion model conditioned on a map of borders and on style tokens.

A U-Net denoises 3D patches. Its conditioning is the anatomical prior A of the patch and of the
whole volume (`anatomy_prior`), and the style of a site. To harmonize, patches are sampled under the
target's style with CFG++.

The preset ``paper`` has the values of the paper:

* patches of 80 x 96 x 80 in volumes of 160 x 192 x 160 voxels,
* a U-Net with four levels, attention at two of them, and one style vector of 512 for each site,
* training on noise (eps) with a null style at 15 % and contrast bins by log-gamma; each patch has
  its own perturbation of the prior,
* 50 DDIM steps from noise, CFG++ 0.6, each patch sampled separately and blended at the end.

The paper does not state widths (here 64, 128, 256, 512), schedule (T = 1000, linear), bins and
prior. docs/research/2026-12-paper-presets.md lists what still differs, and
benchmarks/activation_memory.py counts the memory of a training step.

Differences of the other presets from the paper, each with a reason:

* `begin` = ``inversion`` and `strength` < 1: the image is inverted for a fraction of the timesteps
  and sampled from there. Sampling from pure noise (the paper) generates intensities from borders
  alone; the result was 3.5 dB worse than the unharmonized image.
* `residual`: decode(target) - decode(null style), from the same inverted latent, is added to the
  image. Errors of inversion and sampling cancel, and guidance 0 changes nothing. No learned
  correction cancels, because an exact round trip returns the image. From noise the result itself
  is used.
* The image is first harmonized by the baseline (`harmonizer.methods.learned.base`).
* `fusion` = ``step``: patches are blended at every step; the noise is one volume, drawn once.
* `guidance` means the same with any number of steps (`harmonizer.deep.diffusion.guidance`).
* Several `tokens` for a style, because cross-attention to one is a constant.
* `coordinates`: the coarse map is not aligned with the patch, so the network gets the position.
* `brain_only`: the loss covers the brain, and sampling fixes the background.
* `warp` is off, because interpolation changes resolution, which is part of a scanner's look.
* `enroll` fits the tokens of a new site to its scans with frozen networks.

References
----------
Hache et al. 2026, "Patch-level anatomy- and style-guided 3D diffusion".
"""
