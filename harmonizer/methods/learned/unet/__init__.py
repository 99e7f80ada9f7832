"""A supervised residual U-Net that corrects tissue matching; weights come with the package."""
