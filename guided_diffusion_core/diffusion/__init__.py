"""Numbers of the diffusion process: schedules, coefficients of the samplers, history of losses."""
