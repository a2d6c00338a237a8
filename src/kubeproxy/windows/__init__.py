"""The Host Networking Service (HNS) of Windows, reached by the Host Compute Network (HCN) API.

    values       what HNS has: networks, endpoints, load balancers
    documents    the same as the JSON documents that HNS takes and returns
    errors       the codes of HNS: names, what kind of trouble they are, and the remedy
    features     which version of HNS has which feature
    calls        the functions of computenetwork.dll and vmcompute.dll, as a Protocol
    binding      these functions through ctypes
    hcn          the dozen calls that a driver needs, `Hcn`, made of those functions
    fake         an HNS in memory that has the rules of the real one

The modules know nothing of Services. All of them import on Linux, where tests run them.
"""
