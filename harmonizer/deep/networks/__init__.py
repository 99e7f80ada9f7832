"""Networks in 2D and 3D: residual blocks, U-Nets, encoders, flows. Tensors in, tensors out."""
