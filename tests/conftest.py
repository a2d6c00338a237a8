"""What all tests share."""

from hypothesis import HealthCheck, settings

# Time is no measure of a test: machines are noisy and shared.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

pytest_plugins = ("tests.vm.plugin",)
