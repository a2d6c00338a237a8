"""What all tests share."""

from hypothesis import HealthCheck, settings

# Time is no measure of a test: machines are noisy and shared. Nor is luck: the same code gets the same examples every
# time, and `make fuzz` looks for others.
settings.register_profile(
    "same", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("fuzz", settings.get_profile("same"), derandomize=False, print_blob=True)
settings.load_profile("same")

pytest_plugins = ("tests.vm.plugin",)
