"""A package of network families, as another distribution would name in an entry point "medsegdiff.networks"."""
