"""CACD: contrastive anatomy-contrast disentanglement with a diffusion autoencoder.

An encoder gives each slice a contrast vector z_c and an anatomy vector z_a. Contrastive losses over
contrast views (GIN, bias field, gamma) separate them. A diffusion model, conditioned on both,
generates the slice. To harmonize, a slice is inverted to noise under its own vectors and decoded
under the target's mean z_c and its own z_a.

Contrast vectors of two subjects are compared within a scanner, as in the authors' code: one view of
two scanners' images has two contrasts.

The preset ``paper`` has the values of the paper:

* 2D U-Net of 20.3 M parameters without attention, 256-d heads, style as a scale only,
* T = 1000, linear schedule, prediction of the noise (eps),
* batches of 9 subjects x 9 views, temperature 0.07, both contrastive weights 0.5,
* Adam with 1e-4, gradient clipping at 1, EMA 0.999,
* GIN of the authors' code, plain mean of the target's z_c, DDIM with 250 steps.

docs/research/2026-12-paper-presets.md lists what still differs.

Differences of the other presets from the paper, each with a reason:

* Intensities are scaled per volume, z_c is one vector for a volume, and z_a is smoothed across
  slices, because numbers per slice make slices flicker.
* All brain slices are trained on, because top and bottom must be harmonized too (`max_offset`).
* The encoder pools over the brain, so that a vertex slice has the contrast of its scan.
* Inversion has no clipping, which would make it inexact. It uses a quadratic grid of timesteps and
  fixed-point corrections.
* With `strength` < 1 only a fraction of the timesteps is inverted, which preserves fine detail.
* With `residual`, decode(target) - decode(source) is added to the image. Errors of inversion and
  decoding cancel, and equal contrasts change nothing. No learned correction cancels, because an
  exact round trip returns the image.
* Anatomy vectors are compared within a scanner too (`anatomy_across_sites`), so that they need not
  distinguish scanners.
* The image is first harmonized by the baseline (`harmonizer.methods.learned.base`).
* GIN has the settings of its own paper; ``gin=release`` are those of the CACD authors' code.
* The change is smoothed across slices (`change_smoothing`).

References
----------
Scholz et al. 2025, "Contrastive Anatomy-Contrast Disentanglement: A Domain-General MRI
Harmonization Method", github.com/daniel-scholz/cacd.
"""
