"""Tests run on virtual CPU devices, with strict dtype promotion and a short collective timeout: a deadlock fails."""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_collective_call_terminate_timeout_seconds=60"

import jax

jax.config.update("jax_num_cpu_devices", 32)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")

jax.devices()  # starts the backend now: later, acquire_devices would make just as many as one test asks for
