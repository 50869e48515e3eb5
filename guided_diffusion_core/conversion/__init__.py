"""Checkpoints of other software: safe reading and writing of their files, and inference of their configuration."""
