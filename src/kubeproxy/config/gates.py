"""Feature gates: which switches exist, what they are set to, and which settings are refused.

The gates that concern kube-proxy are in a table, v1.36's and the ones v1.37 added, as v1.38 has them. The
reference binary also knows the gates of every other component, and files shared by a whole node name them, so
those names are accepted and have no effect. A name that is in neither list but looks like a gate's is most
likely another component's, of a release or a distribution that is unknown here, or it is misspelt: that is a
warning, because a node must not be without a proxy for that reason. Anything else is an error.

Source: the feature gates page of the Kubernetes documentation, v1.36 and v1.37.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct


class Gate(Struct, gc=False, frozen=True):
    """One gate: its stage (Alpha, Beta, GA, Deprecated), its default, and whether it is locked to that."""

    stage: str
    default: bool
    locked: bool = False


LOCALHOST_NODE_PORTS: Final = "KubeProxyNFTablesLocalhostNodePorts"
"""The gate of node ports on localhost in nftables mode (KEP-6032), with the stage and default of v1.38."""

GATES: Final[Mapping[str, Gate]] = {
    "AllAlpha": Gate("Alpha", False),
    "AllBeta": Gate("Beta", False),
    "AllowServiceExternalIPs": Gate("GA", True),
    "ComponentFlagz": Gate("Beta", True),
    "ComponentStatusz": Gate("Beta", True),
    "ContextualLogging": Gate("Beta", True),
    "KubeProxyIPVS": Gate("Deprecated", True),
    LOCALHOST_NODE_PORTS: Gate("Beta", True),
    "LoggingAlphaOptions": Gate("Alpha", False),
    "LoggingBetaOptions": Gate("Beta", True),
    "MultiCIDRServiceAllocator": Gate("GA", True, True),
    "NFTablesNetlink": Gate("Beta", True),
    "NFTablesProxyMode": Gate("GA", True, True),
    "NativeHistograms": Gate("Alpha", False),
    "PreferSameTrafficDistribution": Gate("GA", True, True),
    "WinDSR": Gate("GA", True, True),
    "WinOverlay": Gate("GA", True, True),
}
"""The gates of kube-proxy."""

ELSEWHERE: Final = """
APIResponseCompression APIServerIdentity APIServerTracing APIServerWebhookAuthenticationToken APIServingWithRoutine
AggregatedDiscoveryRemoveBetaType AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests
AllowOverwriteTerminationGracePeriodSeconds AllowParsingUserUIDFromCertAuth AllowUnsafeMalformedObjectDeletion
AnonymousAuthConfigurableEndpoints AnyVolumeDataSource AtomicFIFO AtomicWriteVolumeUserFields
AuthorizeNodeWithSelectors AuthorizePodWebsocketUpgradeCreatePermission AuthorizeWithSelectors BtreeWatchCache
CBORServingAndStorage CPUManagerPolicyAlphaOptions CPUManagerPolicyBetaOptions CPUManagerPolicyOptions
CRDObservedGenerationTracking CRDValidationRatcheting CRIListStreaming CSIMigrationPortworx
CSIServiceAccountTokenSecrets CSIVolumeHealth ChangeContainerStatusOnKubeletRestart
ClearingNominatedNodeNameAfterBinding ClientsAllowCARotation ClientsAllowCBOR ClientsAllowTLSCacheGC
ClientsPreferCBOR CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook
ClusterTrustBundle ClusterTrustBundleProjection ComponentSLIs CompositePodGroup ConcurrentWatchObjectDecode
ConsistentListFromCache ConsistentListFromCacheSkipTimeoutFallback ConstrainedImpersonation ContainerCheckpoint
ContainerRestartRules ContainerStopSignals ControllerManagerReleaseLeaderElectionLockOnExit
CoordinatedLeaderElection CrossNamespaceVolumeDataSource CustomCPUCFSQuotaPeriod CustomResourceFieldSelectors
DRAAdminAccess DRAConsumableCapacity DRADerivedAttributes DRADeviceBindingConditions DRADeviceCompatibilityGroups
DRADeviceTaintRules DRADeviceTaints DRAExtendedResource DRAFractionalCapacityRange DRAListTypeAttributes
DRANodeAllocatableResources DRAOptionalNodeOperations DRAPartitionableDevices DRAPartitionableDevicesType
DRAPrioritizedList DRAResourceClaimDeviceStatus DRAResourceClaimGranularStatusAuthorization DRAResourcePoolStatus
DRASchedulerFilterTimeout DRAWorkloadResourceClaims DeclarativeValidation DeclarativeValidationBeta
DeclarativeValidationTakeover DefaultPodSysctls DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency
DisableAllocatorDualWrite DisableCPUQuotaWithExclusiveCPUs DisableNodeKubeProxyVersion DynamicResourceAllocation
EmptyDirVolumeMode EnvFiles EtcdRangeStream EventedPLEG EvictionRequestAPI ExcludeAdmissionWebhookVirtualResources
ExecProbeTimeout ExtendWebSocketsToKubelet ExternalServiceAccountTokenSigner GRPCContainerProbeTLS GangScheduling
GenericWorkload GitRepoVolumeDriver GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority H2CContainerProbe
HPAConfigurableTolerance HPAGeneration HPAOptimizedSelectorStore HPAScaleToZero HonorPVReclaimPolicy
HostnameOverride HugepageAwareEviction ImageMaximumGCAge ImageVolume ImageVolumeWithDigest InOrderInformers
InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling InPlacePodVerticalScaling
InPlacePodVerticalScalingAllocatedStatus InPlacePodVerticalScalingExclusiveCPUs
InPlacePodVerticalScalingExclusiveMemory InPlacePodVerticalScalingInitContainers
InPlacePodVerticalScalingMemoryBackedVolumes InPlacePodVerticalScalingSchedulerPreemption
InTreePluginPortworxUnregister InformerResourceVersion InterPodAffinityHostnameFastPath JobBackoffLimitPerIndex
JobManagedBy JobPodReplacementPolicy JobSuccessPolicy KMSv1 KubeletAllocatedPodsEndpoint KubeletCgroupDriverFromCRI
KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages KubeletFineGrainedAuthz KubeletInUserNamespace KubeletPSI
KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletPodResourcesListUseActivePods
KubeletRegistrationGetOnExistsOnly KubeletSeparateDiskGC KubeletServiceAccountTokenForCredentialProviders
KubeletTracing LegacySidecarContainers ListFromCacheSnapshot LocalStorageCapacityIsolationFSQuotaMonitoring
LogarithmicScaleDown ManifestBasedAdmissionControlConfig MatchLabelKeysInPodAffinity
MatchLabelKeysInPodTopologySpread MatchLabelKeysInPodTopologySpreadSelectorMerge MaxUnavailableStatefulSet MemoryQoS
MutableCSINodeAllocatableCount MutablePVNodeAffinity MutablePodResourcesForSuspendedJobs
MutableSchedulingDirectivesForSuspendedJobs MutatingAdmissionPolicy NodeControllerLeaseCircuitBreaker
NodeDeclaredFeatures NodeInclusionPolicyInPodTopologySpread NodeLifecycleConditions NodeLogQuery NodeSwap
NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching OrderedNamespaceDeletion PLEGOnDemandRelist
PersistentVolumeClaimUnusedSinceTime PodAndContainerStatsFromCRI PodCertificateRequest PodDeletionCost
PodGroupPreemptionPolicy PodLevelResourceManagers PodLevelResources PodLevelResourcesFixDefaulting
PodLevelResourcesFixKubeletQOSClass PodLifecycleSleepAction PodLifecycleSleepActionAllowZero
PodLogsQuerySplitStreams PodObservedGenerationTracking PodReadyToStartContainersCondition PodSchedulingReadiness
PodTopologyLabelsAdmission PodsAPI PortForwardWebsockets PreventStaticPodAPIReferences ProcMountType QOSReserved
RecoverVolumeExpansionFailure RecursiveReadOnlyMounts ReduceDefaultCrashLoopBackOffDecay RelaxedDNSSearchValidation
RelaxedEnvironmentVariableValidation RelaxedServiceNameValidation ReloadKubeletClientCAFile
ReloadKubeletServerCertificateFile RemoteRequestHeaderUID ResilientWatchCacheInitialization ResourceHealthStatus
ResourceHealthStatusMessage RestartAllContainersOnContainerExits RetryGenerateName RotateKubeletServerCertificate
RuntimeClassInImageCriApi SELinuxChangePolicy SELinuxMount SELinuxMountReadWriteOncePod SchedulerAsyncAPICalls
SchedulerAsyncPreemption SchedulerPopFromBackoffQ SchedulerPreQueueingHints SchedulerQueueingHints
SeparateCacheWatchRPC SeparateTaintEvictionController ServiceAccountNodeAudienceRestriction ServiceAccountTokenJTI
ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation ServiceAccountTokenPodNodeInfo
ServiceCIDRStatusFieldWiping ServiceTrafficDistribution ShardedListAndWatch SidecarContainers
SizeBasedListCostEstimate StaleControllerConsistencyDaemonSet StaleControllerConsistencyHPA
StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet StaleControllerConsistencyStatefulSet
StatefulSetRecreateStrategy StatefulSetSemanticRevisionComparison StorageCapacityScoring StorageNamespaceIndex
StorageVersionAPI StorageVersionHash StorageVersionMigrator StreamingCollectionEncodingToJSON
StreamingCollectionEncodingToProtobuf StrictIPCIDRValidation StructuredAuthenticationConfiguration
StructuredAuthenticationConfigurationEgressSelector StructuredAuthenticationConfigurationJWKSMetrics
StructuredAuthorizationConfiguration SupplementalGroupsPolicy SystemdWatchdog TaintTolerationComparisonOperators
TokenRequestServiceAccountUIDValidation TopologyAwareHints TopologyAwareWorkloadScheduling
TopologyManagerPolicyAlphaOptions TopologyManagerPolicyBetaOptions TopologyManagerPolicyOptions
TranslateStreamCloseWebsocketRequests UnauthenticatedHTTP2DOSMitigation UnknownVersionInteroperabilityProxy
UnlockWhileProcessingFIFO UserNamespacesHostNetworkSupport UserNamespacesSupport VolumeAttributesClass
VolumeBindMountOptions VolumeLimitScaling WatchCacheInitializationPostStartHook WatchCacheStallResume
WatchFromStorageWithoutResourceVersion WatchList WatchListClient WatchListCompression WebhookRoundTripLoadBalancing
WindowsCPUAndMemoryAffinity WindowsGracefulNodeShutdown WindowsHostNetwork WorkloadWithJob
"""
"""The gates of other components, accepted without effect. Split when needed, which is once at most."""


_LIKE_A_GATE: Final = re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*")


def resolve(settings: Mapping[str, bool]) -> dict[str, bool]:
    """Returns the value of every gate of kube-proxy, given what the operator set.

    `AllAlpha` and `AllBeta` set every gate of their stage that is not set by itself. Settings that `problems`
    would refuse are ignored.
    """
    values = {name: gate.default for name, gate in GATES.items()}
    for group, stage in (("AllAlpha", "Alpha"), ("AllBeta", "Beta")):
        if group in settings:
            values |= {name: settings[group] for name, gate in GATES.items() if gate.stage == stage}
    return values | {name: on for name, on in settings.items() if name in GATES and not GATES[name].locked}


def problems(settings: Mapping[str, bool]) -> list[str]:
    """Names what cannot be a gate, and the gates that cannot have the value they were given."""
    return [problem for name, on in settings.items() if (problem := _problem(name, on))]


def remarks(settings: Mapping[str, bool]) -> list[str]:
    """Names the settings that are accepted but will stop working or change nothing."""
    found = []
    elsewhere = ELSEWHERE.split() if settings else ()
    for name, on in settings.items():
        gate = GATES.get(name)
        if gate is None and name in elsewhere:
            found.append(f"feature gate {name} is not kube-proxy's: {_word(on)} has no effect here")
        elif gate is None and _LIKE_A_GATE.fullmatch(name):
            found.append(f"feature gate {name} is unknown: {_word(on)} has no effect here{_hint(name)}")
        elif gate is None:
            continue  # `problems` names it
        elif gate.stage in {"GA", "Deprecated"}:
            found.append(f"feature gate {name}={_word(on)} is set, but a later release removes this gate")
    return found


def _problem(name: str, on: bool) -> str:  # noqa: FBT001 - the value of the gate is what it is about
    gate = GATES.get(name)
    if gate is None:
        return "" if _LIKE_A_GATE.fullmatch(name) else f"unrecognized feature gate: {name}"
    if gate.locked and on is not gate.default:
        return f"cannot set feature gate {name} to {_word(on)}, feature is locked to {_word(gate.default)}"
    return ""


def _hint(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, GATES, 1, 0.8)
    return f" (did you mean {close[0]}?)" if close else ""


def _word(on: bool) -> str:  # noqa: FBT001
    return "true" if on else "false"
