"""DISARM: disentangled scanner-free image-to-image translation (Caldera 2024)."""
