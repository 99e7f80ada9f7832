"""Losses: functions of tensors, named for what they are zero at."""
