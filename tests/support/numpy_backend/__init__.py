"""A third backend with the one network that `suite` compares: what an implementation has to offer at the least."""
