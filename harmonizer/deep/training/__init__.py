"""Training: tasks with their optimizers, the training loop, checkpoints and data sampling.

The loop knows optimizer groups and losses, not methods; methods define tasks, not the loop. See
docs/extend/learned-backend.md.
"""
