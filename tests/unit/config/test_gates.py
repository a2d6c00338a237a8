import pytest

from kubeproxy.config.gates import ELSEWHERE, GATES, problems, remarks, resolve

DEFAULTS = {name: gate.default for name, gate in GATES.items()}


def changed(settings):
    return {name: on for name, on in resolve(settings).items() if on is not DEFAULTS[name]}


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"NFTablesNetlink": False}, {"NFTablesNetlink": False}),
        ({"AllAlpha": True}, {"AllAlpha": True, "LoggingAlphaOptions": True, "NativeHistograms": True}),
        ({"NativeHistograms": False, "AllAlpha": True}, {"AllAlpha": True, "LoggingAlphaOptions": True}),
        ({"AllBeta": False}, {"ComponentFlagz": False, "ComponentStatusz": False, "ContextualLogging": False, "KubeProxyNFTablesLocalhostNodePorts": False, "LoggingBetaOptions": False, "NFTablesNetlink": False}),
        ({"AllBeta": False, "NFTablesNetlink": True}, {"ComponentFlagz": False, "ComponentStatusz": False, "ContextualLogging": False, "KubeProxyNFTablesLocalhostNodePorts": False, "LoggingBetaOptions": False}),
        ({"AllAlpha": False, "AllBeta": True}, {"AllBeta": True}),
        ({"WinDSR": False, "NodeSwap": False, "Magic": True}, {}),
    ],
)  # fmt: skip
def test_what_the_gates_are(settings, changes):
    assert changed(settings) == changes


@pytest.mark.parametrize("name", [name for name, gate in GATES.items() if gate.locked])
def test_a_locked_gate_takes_its_default_only(name):
    default = GATES[name].default
    assert problems({name: default}) == []
    assert len(remarks({name: default})) == 1
    word = {True: "true", False: "false"}
    assert problems({name: not default}) == [
        f"cannot set feature gate {name} to {word[not default]}, feature is locked to {word[default]}"
    ]


@pytest.mark.parametrize("name", ELSEWHERE.split())
def test_gates_of_other_components_are_accepted_and_do_nothing(name):
    assert problems({name: True}) == []
    assert resolve({name: True}) == DEFAULTS
    assert remarks({name: True}) == [f"feature gate {name} is not kube-proxy's: true has no effect here"]


@pytest.mark.parametrize(
    "name", ["InPlacePodVerticalScalingInitContainers", "ShardedListAndWatch", "PodsAPI", "WorkloadWithJob", "ClientsAllowCARotation",
             "DeclarativeValidationBeta", "DRAResourcePoolStatus", "KMSv1", "NextYearsGate2"],
)  # fmt: skip
def test_a_name_like_a_gates_never_ends_the_program(name):
    assert problems({name: True, "NFTablesNetlink": False}) == []
    (remark,) = remarks({name: True, "NFTablesNetlink": False})
    assert remark.startswith(f"feature gate {name} is ")
    assert "true has no effect here" in remark
    assert resolve({name: True}) == DEFAULTS


def test_a_misspelt_gate_of_ours_is_told_with_its_name():
    assert remarks({"NFTablesNetLink": True}) == [
        "feature gate NFTablesNetLink is unknown: true has no effect here (did you mean NFTablesNetlink?)"
    ]


@pytest.mark.parametrize(
    "name", ["magic", "", "A", "DSR", "NFTables-Netlink", "Magic Gate", "Ünknown", "9Gate"]
)
def test_what_cannot_be_a_gate_is_refused(name):
    assert problems({name: True, "WinOverlay": True}) == [f"unrecognized feature gate: {name}"]
    assert len(remarks({name: True, "WinOverlay": True})) == 1


def test_gates_that_may_be_set_need_no_remark():
    free = {name: True for name, gate in GATES.items() if gate.stage in {"Alpha", "Beta"}}
    assert (problems(free), remarks(free)) == ([], [])


def test_a_name_is_known_once():
    names = [*ELSEWHERE.split(), *GATES]
    assert len(names) == len(set(names))
