"""The framework-free core: everything that both backends would otherwise write twice."""
