"""Building blocks of networks: layers, losses, diffusion, augmentation and training."""
