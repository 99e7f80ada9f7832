"""Networks: blocks, a U-Net and an encoder, in 2D and 3D. Tensors in, tensors out."""
