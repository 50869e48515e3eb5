"""The diffusion process in numbers: schedules, coefficients of the samplers, loss history."""
