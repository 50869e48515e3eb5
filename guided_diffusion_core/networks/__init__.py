"""Networks without a framework: plans, names, shapes and initial values."""
