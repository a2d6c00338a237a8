# Starts kube-proxy in a HostProcess container, once the network plug-in has made the node's HNS network.
#
# What config.conf leaves empty is looked up here: the network, and on overlay networks the source VIP, which is the
# address of an endpoint that the network plug-in reserves for it.
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

$root = if ($env:CONTAINER_SANDBOX_MOUNT_POINT) { $env:CONTAINER_SANDBOX_MOUNT_POINT } else { '' }
$config = "$root/etc/kube-proxy/config.conf"
$python = "$root/python/python.exe"
$types = 'l2bridge', 'l2tunnel', 'overlay'

# A value of the section winkernel; '' if it is not set.
function Get-Configured([string] $name) {
    $line = Select-String -Path $config -Pattern "^\s+${name}:\s*[""']?([^""'#]*?)[""']?\s*(#.*)?$" | Select-Object -First 1
    if ($line) { $line.Matches[0].Groups[1].Value } else { '' }
}

# The network with the configured name, or else the only one that can be used. Waits for it: it may be made with the first Pod.
function Wait-Network([string] $name) {
    $said = $false
    while ($true) {
        $found = @(Get-HnsNetwork | Where-Object { $types -contains $_.Type -and (-not $name -or $_.Name -eq $name) })
        if ($found.Count -eq 1) { return $found[0] }
        if ($found.Count -gt 1) {
            throw "There are several HNS networks ($($found.Name -join ', ')): set winkernel.networkName in config.conf"
        }
        if (-not $said) {
            Write-Output "Waiting for the HNS network $(if ($name) { $name } else { 'of the network plug-in' })"
            $said = $true
        }
        Start-Sleep -Seconds 2
    }
}

Import-Module HostNetworkingService -ErrorAction SilentlyContinue
$network = Wait-Network (Get-Configured 'networkName')
$arguments = @('-m', 'kubeproxy', "--config=$config", "--hostname-override=$env:NODE_NAME")
if (-not (Get-Configured 'networkName')) { $env:KUBE_NETWORK = $network.Name }

if ($network.Type -eq 'overlay' -and -not (Get-Configured 'sourceVip')) {
    # Calico makes an endpoint for it. Other network plug-ins need the address in config.conf.
    $reserved = @(Get-HnsEndpoint | Where-Object { $_.Name -eq "$($network.Name)_ep" })
    if ($reserved.Count -ne 1) {
        throw "The overlay network $($network.Name) needs a source VIP: set winkernel.sourceVip in config.conf (docs/windows.md)"
    }
    (Get-Content $config) -replace '^(\s+)sourceVip:.*$', "`$1sourceVip: $($reserved[0].IPAddress)" |
        Set-Content "$env:TEMP/kube-proxy.conf"
    $arguments[2] = "--config=$env:TEMP/kube-proxy.conf"
}

& $python @arguments
exit $LASTEXITCODE
