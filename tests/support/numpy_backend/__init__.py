"""A third backend with the one network that `suite` compares: the least that an implementation needs."""
