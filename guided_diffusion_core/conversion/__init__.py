"""Checkpoints of other software: reading and writing their files, safely, and inferring what they do not say."""
