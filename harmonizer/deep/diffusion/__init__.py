"""Diffusion models: noise schedules, prediction types, samplers, guidance and patch fusion."""
