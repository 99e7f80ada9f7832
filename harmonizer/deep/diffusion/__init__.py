"""Diffusion: schedules in closed form, what a network may predict, and one small sampler each."""
