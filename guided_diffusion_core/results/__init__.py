"""The files of sampled masks: fusion of the members, output files, overlays."""
