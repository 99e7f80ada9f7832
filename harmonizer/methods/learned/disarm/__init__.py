"""DISARM: disentangled anatomy and scanner codes; targets are scanners, or scanner-free.

The networks are

* an anatomy encoder; a discriminator tries to predict the scanner from its code,
* a variational scanner encoder,
* a generator that makes images from both codes and a scanner label,
* two discriminators, for exchanged and for random scanner codes; each predicts whether an image is
  real, and its scanner.

Further losses are self-reconstruction, cross-cycle consistency (exchange of the codes of two images
and back), and recovery of the random code.

The preset ``paper`` has the paper's roles, the loss weights of the authors' code, elastic
augmentation and batches of 2. The optimizer is Adam 1e-4 with betas (0.5, 0.999), and 4e-5 for the
code discriminator. Its steps alternate with 100,000 full steps. Batches may have any size here:
image i gets the style of image i - 1, the first that of the last.
docs/research/2026-12-paper-presets.md lists what still differs.

Differences of the other presets from the paper, each with a reason:

* The scanner-free target is trained: labels are dropped (`label_dropout`), also for random codes,
  and the discriminator should not recognize the scanner of such an image. In the paper the label is
  zero for this target, an input that does not occur in training.
* Scanner-free is one style for the whole study: code 0 without label, and the mean of the sites as
  the baseline's target. The paper draws a code for every image.
* A target is the mean code of all its scans without sampling; the paper samples it
  (`sample_codes`).
* The scanner encoder gets no label when styles are measured, so that unseen scanners can be
  enrolled. With `label_at_target` encoder and generator get the label of a known site, as in the
  paper.
* The encoder is trained towards equal probabilities of all scanners in the code discriminator. With
  `inverse_content` it is trained towards any other scanner, as in the authors' code.
* With `residual`, a second output of the generator is added to the image, so that detail that the
  codes do not contain is preserved. The difference of two generated images would cancel what does
  not depend on the style, such as denoising.
* The image is first harmonized by the baseline (`harmonizer.methods.learned.base`); volumes in
  training by a simpler one (`harmonizer.methods.learned.patch_baseline`).
* `simulated_weight`: the residual is also trained on simulated scanners, where the truth is known.
* `anatomy_weight`: an image of a random style keeps its anatomy code.
* `same_weight`: the anatomy codes of one subject on two simulated scanners should be equal. The
  adversarial losses alone did not achieve this in an hour of training (docs/benchmarks.md).
* The weight decay is that of AdamW; the paper adds it to the gradient. It has almost no effect at
  these learning rates.
* The scanner code modulates the features of the generator instead of being concatenated to them
  (`harmonizer.deep.networks.disentangling`).

With `region` ``head`` the networks are trained on, and change, the whole head without brain
extraction, as in the paper. The baseline then cannot be a method by tissue, because a head contains
other tissues.

References
----------
Caldera et al. 2024, "DISARM: Disentangled Scanner-Free Image Generation via Unsupervised
Image2Image Translation", doi:10.1007/978-3-031-78761-4_10.
"""
