"""What the maps must hold for a Service."""

from kubeproxy.backends.ebpf import held
from kubeproxy.backends.ebpf.compile import FrontCompiler
from kubeproxy.model.plan import ServicePlan


def service(plan: ServicePlan, compiler: FrontCompiler) -> list[str]:
    """A line for each front."""
    return [str(front) for front in sorted(held.fronts_of(plan, compiler))]
