"""DISARM: disentangled anatomy and scanner codes; targets are scanners, or scanner-free.

An anatomy encoder, whose code a discriminator tries to trace to its scanner, and a variational
scanner encoder. A generator makes images from both codes and a scanner label; two discriminators
(for exchanged and for random scanner codes) judge realness and name the scanner. Further losses:
self-reconstruction, exchange there and back (cross-cycle), and recovery of the random code.

The preset ``paper`` has the paper's roles, the loss weights of the authors' code, Adam 1e-4 with
betas (0.5, 0.999), 4e-5 for the code discriminator, elastic augmentation, 100,000 full steps that
alternate with steps of the code discriminator, and batches of 2. Batches may have any size here:
image i takes the style of image i - 1, and the first that of the last.
docs/research/2026-12-paper-presets.md lists what still differs.

Differences of the other presets from the paper, each with a reason:

* Scanner-free is trained: labels are dropped (`label_dropout`), random codes come without a label
  too, and the discriminator should not name the scanner of such an image. The paper feeds zeros
  that the generator never saw in training.
* Scanner-free is one style for the whole study: code 0 without label, and the mean of the sites as
  the baseline's target. The paper draws a code for every image.
* A target is the mean code of all its scans without sampling; the paper samples it
  (`sample_codes`).
* The scanner encoder gets no label when styles are measured, so that unseen scanners can be
  enrolled. `label_at_target` gives a known site's label to encoder and generator (the paper: yes).
* The target of the encoder against the code discriminator is "undecided"; `inverse_content`: any
  other scanner, as in the authors' code.
* `residual`: add a second output of the generator instead of G(anatomy, target) - image, so that
  detail that the codes lose is not lost. A difference of two generated images would cancel what
  does not depend on the style, such as denoising.
* The image is first harmonized by the baseline (`harmonizer.methods.learned.base`); volumes in
  training by a simpler one (`harmonizer.methods.learned.patch_baseline`).
* `simulated_weight`: the residual is also trained on simulated scanners, where the truth is known.
* `anatomy_weight`: an image of a random style keeps its anatomy code.
* `same_weight`: a place seen by two simulated scanners has one anatomy code. Adversaries alone did
  not achieve this in an hour of training (docs/benchmarks.md).
* AdamW's weight decay, which at these rates has almost no effect; the paper adds it to the
  gradient.
* The generator is modulated, not concatenated (`harmonizer.deep.networks.disentangling`).

Whole heads, as in the paper: with `region` ``head`` the networks are trained on, and change, the
head without brain extraction. The baseline is then no method by tissue, since a head has others.

References
----------
Caldera et al. 2024, "DISARM: Disentangled Scanner-Free Image Generation via Unsupervised
Image2Image Translation", doi:10.1007/978-3-031-78761-4_10.
"""
