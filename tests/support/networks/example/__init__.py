"""A small network without a calibration mask: everything that one has to write to add a network."""
