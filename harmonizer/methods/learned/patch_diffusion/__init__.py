"""Patch diffusion: a 3D diffusion model conditioned on a map of borders and on style tokens.

A U-Net denoises 3D patches. Its conditioning is the anatomical prior A of the patch and of the
whole volume (`anatomy_prior`), and the style of a site. To harmonize, patches are sampled under the
target's style with CFG++.

The preset ``paper`` has patches of 80 x 96 x 80 in 160 x 192 x 160, four levels, attention at two
of them, one vector of 512 for each site, null style at 15 %, contrast bins by log-gamma, eps, 50
DDIM steps from noise, CFG++ 0.6, and every patch sampled separately and blended at the end. The
paper does not state widths (here 64, 128, 256, 512), schedule (T = 1000, linear), bins and prior.
Priors are perturbed anew for every patch. docs/research/2026-12-paper-presets.md lists what still
differs, and benchmarks/activation_memory.py counts the memory of a training step.

Differences of the other presets from the paper, each with a reason:

* `begin` = ``inversion`` and `strength` < 1: the image is inverted part of the way and sampled from
  there. From pure noise (the paper), absolute intensities are generated anew from borders, which
  costs 3.5 dB against doing nothing.
* `residual`: add decode(target) - decode(null style), from the same inverted latent, so that the
  error of inversion and sampling is not part of the change, and guidance 0 changes nothing.
  Nothing that is learned is subtracted: an exact round trip returns the image. From noise the
  result itself is used.
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
